"""The model card of an exported policy: README.md with the front matter that the Hugging Face Hub reads."""

import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pipelines.export.card_facts import CardFacts
from pipelines.export.card_sentences import (
    base_lines,
    first_sentences,
    license_sentence,
    limits,
    origin_of_example,
    place_sentence,
    reading_sentences,
    training_lines,
    what_it_is,
)
from pipelines.export.evaluations import tables_of
from pipelines.export.snippets import Loading, transformers_program, vllm_program

TEMPLATE = "card.md.j2"


def render_card(facts: CardFacts, name: str) -> str:
    """Return the card as Markdown. name: of the exported folder."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["cell"] = cell
    environment.globals |= {"cell": cell, "fenced": fenced}
    loading = loading_of(facts, name)
    text = environment.get_template(TEMPLATE).render(
        front=front_matter(facts),
        title=name,
        what=what_it_is(facts),
        first=first_sentences(facts),
        prompts=facts.prompts,
        reading=reading_sentences(facts),
        origin=origin_of_example(facts),
        place=place_sentence(facts, name),
        transformers=transformers_program(loading, facts.prompts),
        vllm=vllm_program(loading, facts.prompts),
        base=base_lines(facts),
        training=training_lines(facts),
        evaluations=tables_of(facts.reports),
        limits=[cell(sentence) for sentence in limits(facts)],
        license=license_sentence(facts),
    )
    return re.sub(r"\n{3,}", "\n\n", text)


def front_matter(facts: CardFacts) -> str:
    """Return the YAML that the Hub reads; it knows data sets by name only, so digests have a key of their own."""
    front: dict[str, Any] = {
        "base_model": facts.base.name,
        "base_model_relation": "adapter" if facts.kind == "adapter" else "finetune",
        "library_name": "peft" if facts.kind == "adapter" else "transformers",
        "pipeline_tag": "text-generation",
        "license": facts.base.license or "unknown",
        "tags": ["pft", "preference", *(["lora"] if facts.ref.adapter else [])],
        "pft": {
            "version": package_version(),
            "base_digest": facts.base.digest,
            "training_data_digest": facts.ref.data_digest,
            "config_digest": facts.ref.config_digest,
            "prompt_digest": facts.ref.template_digest,
            "evaluation_data_digests": sorted({report.data for report in facts.reports}),
        },
    }
    return yaml.safe_dump(front, sort_keys=False, allow_unicode=True, width=1000)


def package_version() -> str | None:
    try:
        return version("pft")
    except PackageNotFoundError:  # a copy of the code
        return None


def loading_of(facts: CardFacts, name: str) -> Loading:
    """Return how programs beside the exported folder load it."""
    return Loading(facts.base.name, name, facts.rank) if facts.kind == "adapter" else Loading(name, None, None)


def cell(text: object) -> str:
    """Return a text as one line that Markdown, also in a table, reads as plain."""
    return re.sub(r"([\\`*_{}\[\]<>|~])", r"\\\1", " ".join(str(text).split()))


def fenced(text: str, language: str = "text") -> str:
    """Return a block of code whose fence is longer than any in the text."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"
