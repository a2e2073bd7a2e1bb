"""`export`: write a policy's weights and its model card into a folder that other tools load."""

from typing import Any

from pft_core.files import whole_folder, write_text
from pipelines.console import console
from pipelines.export.card import render_card
from pipelines.export.card_facts import CardFacts, facts_of
from pipelines.export.card_sentences import bring_the_base
from pipelines.export.export_config import ExportConfig, refuse_in_use, refuse_missing_inputs

CARD_NAME = "README.md"
SAID = {
    "adapter": "the adapter, which needs its base model",
    "merged": "the adapter merged into its base model, in float32",
    "weights": "the weights of a full fine-tuning",
}


def run(config: ExportConfig) -> dict[str, Any]:
    """Export a policy. Result: folder, kind, merged, files, bytes, and the reports that the card shows.

    Raises UserError if the run cannot be exported, or the folder to write is in use.
    """
    ref = refuse_missing_inputs(config)
    kind = config.kind_of(ref)
    facts = facts_of(config, ref, kind)
    announce(config, facts)
    from pipelines.export.weights import write_weights

    with whole_folder(config.to) as unfinished:
        write_weights(ref, kind, unfinished)
        write_text(unfinished / CARD_NAME, render_card(facts, config.to.resolve().name))
        refuse_in_use(config.to)  # another process may have written there meanwhile
    sizes = {file.name: file.stat().st_size for file in sorted(config.to.iterdir())}
    console.print(f"export: {config.to} holds {len(sizes)} files, {sum(sizes.values()) / 1e6:,.1f} MB", highlight=False)
    return {
        "folder": str(config.to),
        "kind": kind,
        "merged": kind == "merged",
        "files": list(sizes),
        "bytes": sum(sizes.values()),
        "reports": [str(report.place) for report in facts.reports],
    }


def announce(config: ExportConfig, facts: CardFacts) -> None:
    """Say what is written, and what the user should know of it."""
    sentences = [f"export: {SAID[facts.kind]}"]
    if facts.kind == "weights" and config.merge:
        sentences.append("--merge has nothing to merge: the run is fully fine-tuned, so its weights are exported")
    if facts.kind == "merged" and facts.parameters:
        sentences.append(f"about {facts.parameters * 4 / 1e6:,.0f} MB are written, and as much memory is used")
    if facts.kind == "adapter" and not facts.base.is_on_hub:
        sentences.append(bring_the_base(facts.base))
    if not facts.reports:
        sentences.append("no evaluation of this run lies beside it: name one with --report DIR, for the card's table")
    if facts.quotes:
        sentences.append("the card quotes an item of the evaluation: check that it may become public")
    for sentence in sentences:
        console.print(sentence, highlight=False, soft_wrap=True)
