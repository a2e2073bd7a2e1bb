"""General capability before and after training, on a two-choice file or on lm-eval tasks.

Both give one score per item, so the drop can be paired item by item.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from pft_core.data import Reject
from pft_core.errors import UserError
from pft_core.evaluation import CapabilityAnswer, CapabilityItem, ask_items, read_items
from pft_core.prompts import Frame, template_arguments
from pft_core.scoring import BranchScorer
from pipelines.evaluate.answering_job import AnsweringJob
from pipelines.evaluate.policy import load_asked

SCORES = ("acc", "exact_match")  # lm-eval's per-item scores to use, in order of preference


def ask_capability(job: AnsweringJob, path: Path) -> list[CapabilityAnswer | Reject]:
    """Ask a policy the items of a two-choice file, in file order. Raises UserError.

    An item that is unreadable or too long becomes a Reject for the caller to count.
    """
    items = read_items(path)
    model, tokenizer = load_asked(job)
    valid = [item for item in items if isinstance(item, CapabilityItem)]
    answers = iter(ask_items(valid, scorer=BranchScorer(model), tokenizer=tokenizer, settings=job.settings))
    return [item if isinstance(item, Reject) else next(answers) for item in items]


def ask_lm_eval(job: AnsweringJob, tasks: Sequence[str]) -> list[CapabilityAnswer]:
    """Let lm-eval ask a policy its tasks, named or given as YAML files, and score every item.

    A policy trained with a chat template is asked with it. lm-eval sets the process's random seeds. Raises UserError
    if the package, a task or its data is missing, and for a task that has no score per item.
    """
    try:
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise UserError(f"lm-eval is not installed ({error}): pip install -e '.[lm-eval]'") from None
    # Reading the list of lm-eval's own tasks takes long, and tasks given by path do not need it.
    manager = TaskManager(include_defaults=not all(Path(task).is_file() for task in tasks))
    loaded_tasks = _load_tasks(manager, tasks)
    model, tokenizer = load_asked(job)
    # This keeps the usual limit of padded tokens even if every item has the maximum length. Log-probabilities are in
    # float32 as elsewhere, because in bfloat16 they would often tie, and lm-eval takes the first of equals.
    batch_size = max(1, job.settings.tokens_per_batch // job.settings.max_length)
    results: Any = simple_evaluate(
        model=HFLM(
            pretrained=model,
            tokenizer=tokenizer,
            batch_size=batch_size,
            softmax_dtype=torch.float32,
            chat_template_args=template_arguments(),
        ),
        tasks=loaded_tasks,
        task_manager=manager,
        apply_chat_template=job.settings.style.frame != Frame(),
        bootstrap_iters=0,  # intervals are computed from the paired drop
    )
    return [answer for task, samples in results["samples"].items() for answer in _answers(task, samples)]


def _load_tasks(manager: Any, names: Sequence[str]) -> list[Any]:
    """Load tasks with their data. Raises UserError."""
    try:
        return list(manager.load(list(names))["tasks"].values())
    except (KeyError, ValueError, OSError) as error:
        raise UserError(
            f"lm-eval cannot load the tasks {', '.join(names)}: {error}. `lm-eval ls tasks` lists the known names; "
            "the data of a task must be in the datasets cache or reachable over the network"
        ) from None


def _answers(task: str, samples: Sequence[Mapping[str, Any]]) -> list[CapabilityAnswer]:
    """Return the scores of a task's items, from its first filter if it has several."""
    metric = next((name for name in SCORES if name in samples[0]["metrics"]), None)
    if metric is None:
        raise UserError(
            f"lm-eval task {task!r} scores items by {', '.join(samples[0]['metrics'])}, none of which is "
            f"{' or '.join(SCORES)}: its drop cannot be paired: leave it out"
        )
    first_filter = [sample for sample in samples if sample["filter"] == samples[0]["filter"]]
    return [CapabilityAnswer(f"{task}:{sample['doc_id']}", task, float(sample[metric])) for sample in first_filter]
