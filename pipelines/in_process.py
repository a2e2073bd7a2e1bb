"""Train and ask a policy in this process, without Ray Train or Ray Data: what warm one-process actors run."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from pft_core.artifacts import DatasetManifest, ModelRef
from pft_core.evaluation.answers import Answerer, Asking, ask
from pft_core.evaluation.tasks import Outcome
from pft_core.local_context import LocalContext
from pft_core.model import load_tokenizer
from pft_core.preferences import PreferenceSpace
from pft_core.prompts import template_digest
from pft_core.records import Reject
from pipelines.config import RunConfig
from pipelines.encode import prompt_style
from pipelines.evaluate_worker import Item, Job
from pipelines.objective import axis_names
from pipelines.publish import publish_policy
from pipelines.train_worker import Payload, build_and_fit


def train_here(
    config: RunConfig,
    layer: str,
    folder: Path,
    *,
    log: Callable[[int, dict[str, float]], None],
    device: torch.device,
    validation_layer: str | None = None,
) -> tuple[ModelRef, int]:
    """Train, or continue from the folder's newest checkpoint, and publish the policy there.

    Returns its reference, with the adapter's place in it, and the number of steps of the whole run.
    """
    context = LocalContext(folder / "checkpoints", device=device, log=log)
    axes = axis_names(DatasetManifest.load(Path(str(config.data))).space)
    result = build_and_fit(Payload(config, axes, layer, validation_layer), context)
    saved = context.latest_checkpoint()
    assert saved is not None, "a run ends with a checkpoint"
    publish_policy(config, saved, folder)
    return ModelRef.load(folder), result.steps


def untrained(config: RunConfig, data: str) -> ModelRef:
    """A reference to the base model, asked in the words of the config and the data."""
    style = prompt_style(config.prompt, load_tokenizer(str(config.model)))
    space = DatasetManifest.load(Path(data)).space
    return ModelRef(str(config.model), None, None, style, space, (), template_digest(style, space), "", "", None)


def asking_job(config: RunConfig, ref: ModelRef, space: PreferenceSpace, *, use_gpu: bool) -> Job:
    """How a policy is asked by likelihood, with the lengths and the precision that it was trained with."""
    asking = Asking(ref.style, space, config.encoding.max_length, config.train.tokens_per_microbatch, max_new_tokens=1)
    return Job(ref, asking, generate=False, precision=config.train.precision, use_gpu=use_gpu, num_threads=1)


def ask_here(
    items: Sequence[Item], answer: Answerer, base_answer: Answerer | None, *, unconditioned: bool = True
) -> tuple[list[Outcome], list[Reject]]:
    """Ask every item; return what was chosen, and what could not be asked."""
    answered = ask(items, answer, base_answer, unconditioned=unconditioned)
    return [o for o in answered if isinstance(o, Outcome)], [r for r in answered if isinstance(r, Reject)]
