"""General capability before and after a training: a two-choice file, or tasks of lm-eval.

Both give one score an item, so that the drop is paired item by item.
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

SCORES = ("acc", "exact_match")  # lm-eval's per-item scores that are counted, the first that a task has


def ask_capability(job: AnsweringJob, path: Path) -> list[CapabilityAnswer | Reject]:
    """Ask a policy the items of a two-choice file, in the file's order. Raises UserError.

    What could not be read or is too long is a Reject: the caller counts it.
    """
    items = read_items(path)
    model, tokenizer = load_asked(job)
    asked = [item for item in items if isinstance(item, CapabilityItem)]
    answers = iter(ask_items(asked, scorer=BranchScorer(model), tokenizer=tokenizer, settings=job.settings))
    return [item if isinstance(item, Reject) else next(answers) for item in items]


def ask_lm_eval(job: AnsweringJob, tasks: Sequence[str]) -> list[CapabilityAnswer]:
    """Let lm-eval ask a policy its tasks, by name or by the path of a YAML file, and score every item itself.

    A policy that was trained in a chat template is asked in it. Sets the process's random seeds, as lm-eval does.
    Raises UserError where the package, a task or its data is not at hand, and for a task without a score of single
    items.
    """
    try:
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise UserError(f"lm-eval is not installed ({error}): pip install -e '.[lm-eval]'") from None
    # Its own tasks are a long list of files to read, which tasks given by path do not need.
    manager = TaskManager(include_defaults=not all(Path(task).is_file() for task in tasks))
    loaded = _loaded(manager, tasks)
    model, tokenizer = load_asked(job)
    # The same limit of padded tokens as elsewhere, were every item as long as a question may be. Log-probabilities in
    # float32, as elsewhere: rounded to bfloat16 they would often tie, and lm-eval takes the first of equals.
    batch_size = max(1, job.settings.tokens_per_batch // job.settings.max_length)
    found: Any = simple_evaluate(
        model=HFLM(
            pretrained=model,
            tokenizer=tokenizer,
            batch_size=batch_size,
            softmax_dtype=torch.float32,
            chat_template_args=template_arguments(),
        ),
        tasks=loaded,
        task_manager=manager,
        apply_chat_template=job.settings.style.frame != Frame(),
        bootstrap_iters=0,  # the interval is that of the paired drop
    )
    return [answer for task, samples in found["samples"].items() for answer in _answers(task, samples)]


def _loaded(manager: Any, names: Sequence[str]) -> list[Any]:
    """Load tasks with their data. Raises UserError."""
    try:
        return list(manager.load(list(names))["tasks"].values())
    except (KeyError, ValueError, OSError) as error:
        raise UserError(
            f"lm-eval cannot load the tasks {', '.join(names)}: {error}. `lm-eval ls tasks` lists the names it knows; "
            "the data of a task has to be in the datasets cache or a connection away"
        ) from None


def _answers(task: str, samples: Sequence[Mapping[str, Any]]) -> list[CapabilityAnswer]:
    """The scores of a task's items; where it filters replies in several ways, those of the first."""
    metric = next((name for name in SCORES if name in samples[0]["metrics"]), None)
    if metric is None:
        raise UserError(
            f"lm-eval task {task!r} scores items by {', '.join(samples[0]['metrics'])}, none of which is "
            f"{' or '.join(SCORES)}: a drop cannot be paired; leave it out"
        )
    kept = [sample for sample in samples if sample["filter"] == samples[0]["filter"]]
    return [CapabilityAnswer(f"{task}:{sample['doc_id']}", task, float(sample[metric])) for sample in kept]
