"""Everything that a model card says, read from the run, its base and its reports."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pft_core.files import read_json
from pft_core.policies import ModelRef, load_tokenizer
from pipelines.export.base_facts import BaseFacts, base_facts, parameters_in
from pipelines.export.export_config import ExportConfig, Kind
from pipelines.export.own_reports import OwnReport, own_reports
from pipelines.export.prompts import CardPrompts, card_prompts
from pipelines.export.training_facts import TrainingFacts, training_facts
from pipelines.reporting import Example


@dataclass(frozen=True)
class CardFacts:
    """Everything that a card says. parameters: of the whole model, None if unknown. quotes: whether its example is an
    item of an evaluation."""

    ref: ModelRef
    kind: Kind
    base: BaseFacts
    training: TrainingFacts
    reports: Sequence[OwnReport]
    prompts: CardPrompts
    quotes: bool
    parameters: int | None
    rank: int | None


def facts_of(config: ExportConfig, ref: ModelRef, kind: Kind) -> CardFacts:
    """Read everything that the card says."""
    base, training = base_facts(ref), training_facts(config.run_dir, ref)
    reports = own_reports(config.run_dir, ref, config.reports)
    example = example_of(reports, ref)
    tokenizer = load_tokenizer(ref.weights or ref.base)
    prompts = card_prompts(ref, tokenizer, presentation=training.presentation, example=example)
    parameters = parameters_in(Path(ref.weights)) if ref.weights else base.parameters
    return CardFacts(ref, kind, base, training, reports, prompts, example is not None, parameters, rank_of(ref))


def example_of(reports: list[OwnReport], ref: ModelRef) -> Example | None:
    """Return the first example item of the reports on a trained axis; None if they show none."""
    poles = {axis.name: {pole.name for pole in axis.poles} for axis in ref.space.axes}
    examples = (example for report in reports for example in report.examples)
    return next((each for each in examples if poles.get(each["axis"]) == each["chosen"].keys()), None)


def rank_of(ref: ModelRef) -> int | None:
    """Return the largest rank of an adapter; None for full weights."""
    if ref.adapter is None:
        return None
    config = read_json(Path(ref.adapter) / "adapter_config.json", what="an adapter's config")
    return int(max([config["r"], *config.get("rank_pattern", {}).values()]))
