"""Ask a policy in this process, without Ray Data, as warm one-process actors do."""

from collections.abc import Collection, Sequence
from pathlib import Path

import pyarrow as pa

from pft_core.data import DatasetManifest, PreferenceSpace, Reject
from pft_core.evaluation import Answerer, AnswerSettings, Outcome, ask
from pft_core.policies import ModelRef, settled, within_positions
from pft_core.prompts import template_digest
from pipelines.config import RunConfig
from pipelines.encode import ModelTokenizer
from pipelines.evaluate.answering_actors import Item, answer_row, answers_table, in_groups, items_table
from pipelines.evaluate.answering_job import AnsweringJob
from pipelines.evaluate.kept_groups import KeptGroups


def base_reference(config: RunConfig, data: str) -> ModelRef:
    """Return a reference to the base model, with the prompt style of the config and the space of the data."""
    style = ModelTokenizer(str(config.model)).facts(config.prompt).style
    space = DatasetManifest.load(Path(data)).space
    return ModelRef(str(config.model), None, None, style, space, (), template_digest(style, space), "", "", None)


def answering_job_of(config: RunConfig, ref: ModelRef, space: PreferenceSpace, *, use_gpu: bool) -> AnsweringJob:
    """Return a job that asks a policy by likelihood, with the lengths and the precision of its training."""
    max_length = within_positions(config.encoding.max_length, ref.weights or ref.base)
    settings = AnswerSettings(ref.style, space, max_length, config.train.tokens_per_microbatch, max_new_tokens=1)
    precision = settled(config.train.precision)
    return AnsweringJob(ref, settings, generate=False, precision=precision, use_gpu=use_gpu, num_threads=1)


def ask_in_groups(
    items: Sequence[Item],
    answer: Answerer,
    base_answer: Answerer | None,
    *,
    one_pole_axes: Collection[str],
    kept: KeptGroups,
) -> pa.Table:
    """Ask the groups that are not finished, and keep them; return the answers to all items as a table."""
    tables = []
    for first, chunk in in_groups(items):
        group = items_table(chunk, first)
        if (table := kept.read(group)) is None:
            outcomes = ask(chunk, answer, base_answer, one_pole_axes=one_pole_axes)
            table = answers_table([answer_row(outcome) for outcome in outcomes], first)
            kept.keep(group, table)
        tables.append(table)
    return pa.concat_tables(tables)


def ask_here(
    items: Sequence[Item],
    answer: Answerer,
    base_answer: Answerer | None,
    *,
    unconditioned: bool = True,
    one_pole_axes: Collection[str] = (),
) -> tuple[list[Outcome], list[Reject]]:
    """Ask every item, as `ask` does; return outcomes and rejects."""
    results = ask(items, answer, base_answer, unconditioned=unconditioned, one_pole_axes=one_pole_axes)
    return [o for o in results if isinstance(o, Outcome)], [r for r in results if isinstance(r, Reject)]
