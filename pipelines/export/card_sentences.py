"""The sentences of a model card."""

import re
from collections.abc import Iterable

from pft_core.prompts import Frame
from pipelines.export.base_facts import BaseFacts
from pipelines.export.card_facts import CardFacts

TINY = 10_000_000  # parameters
PATH = re.compile(r"(?<![\w/.:])(?:~|\.{1,2})?/(?:[^\s,;:()'\"]+/)*([^\s,;:()'\"/]+)")


def what_it_is(facts: CardFacts) -> str:
    weights = {
        "adapter": "a LoRA adapter for",
        "merged": "a LoRA adapter merged, in float32, into",
        "weights": "a full fine-tuning of",
    }[facts.kind]
    space = facts.ref.space
    axes = "; ".join(f"{axis.name} ({' or '.join(pole.name for pole in axis.poles)})" for axis in space.axes)
    return (
        f"This is {weights} `{facts.base.name}`, trained by preference-paired fine-tuning (PFT). It answers under a "
        f"preference that the prompt states, on {len(space.axes)} {'axis' if len(space.axes) == 1 else 'axes'}: {axes}."
    )


def first_sentences(facts: CardFacts) -> list[str]:
    """Return what a reader must know first: a tiny model, and a base that must be brought along."""
    sentences = []
    if facts.parameters is not None and facts.parameters < TINY:
        sentences.append(
            f"**This is a tiny model** ({facts.parameters / 1e6:.2g} million parameters). Its numbers show that the "
            "pipeline works, not how well a real policy does."
        )
    if facts.kind == "adapter" and not facts.base.is_on_hub:
        sentences.append(bring_the_base(facts.base))
    return sentences


def bring_the_base(base: BaseFacts) -> str:
    """Say where the base of an adapter has to be, as it is not on the Hub under its name."""
    if base.is_in_package:
        source = f"the Python package `pft` loads it by this name. Copy it there: {copying(base.name, base.name)}"
    elif base.conversion:
        file = base.conversion["file"]
        source = (
            f"the Python package `pft` makes it from the file `{file}` of the training (sha256 "
            f"`{base.conversion['sha256']}`). Put the file there, too, and run {copying(file, base.name)}"
        )
    else:
        source = f"copy it from where the policy was trained (digest `{base.digest}`)"
    return (
        "The base is not on the Hugging Face Hub under this name. The folder of the base, "
        f"`{base.name}`, has to lie beside this one: {source}. An export with `--merge` needs no base."
    )


def copying(model: str, folder: str) -> str:
    """Return the command that copies a model's folder, of a GGUF file the converted one."""
    return (
        '`python -c "import shutil; from pft_core.policies import place_of_model as place; '
        f"shutil.copytree(place('{model}'), '{folder}')\"`"
    )


def reading_sentences(facts: CardFacts) -> list[str]:
    """Return how the prompt and the answer are made."""
    style, sentences = facts.ref.style, []
    answers = ", or ".join(f"`{answer}`" for answer in facts.prompts.answers[:2])
    if style.frame != Frame():
        sentences.append("The text around it is the chat template of the base model, around one message of the user.")
    if facts.training.presentation == "response":
        sentences.append("The answer is free text; the prompt lists no options.")
    elif style.answer == "option":
        sentences.append("The answer is the text of an option, without its letter.")
    else:
        sentences.append(f"The answer is the letter of an option as JSON, such as {answers}.")
    if facts.training.presentation is None:
        sentences.append(
            "The training data was not at hand: if it had free answers, leave out the lines of options and instruction."
        )
    if not facts.prompts.is_exact:
        sentences.append("**The tokenizer does not give exactly the tokens of the training for these prompts.**")
    return sentences


def origin_of_example(facts: CardFacts) -> str:
    made_up = "The item is made up for this card; it is not from the data."
    return f"An item of the evaluation below, on the axis {facts.prompts.axis}:" if facts.quotes else made_up


def place_sentence(facts: CardFacts, name: str) -> str:
    libraries = "`transformers` and `peft`" if facts.kind == "adapter" else "`transformers`"
    folder = f"Run it in the folder that holds `{name}`" + (
        f" and `{facts.base.name}`." if facts.kind == "adapter" and not facts.base.is_on_hub else "."
    )
    return f"It needs {libraries}. {folder}"


def base_lines(facts: CardFacts) -> list[tuple[str, str]]:
    base = facts.base
    where = (
        "Hugging Face Hub"
        if base.is_on_hub
        else "a model of the package pft"
        if base.is_in_package
        else "a local folder"
    )
    size = "unknown" if facts.parameters is None else f"{facts.parameters:,}"
    lines = [("name", f"{base.name} ({where})"), ("digest", base.digest or "unknown"), ("parameters", size)]
    return [*lines, ("converted to float32 from", base.converted_from)] if base.converted_from else lines


def training_lines(facts: CardFacts) -> list[tuple[str, str]]:
    """Return the training's data and settings, by the keys of its config."""
    ref, training, manifest = facts.ref, facts.training, facts.training.manifest
    lines = [("data digest", ref.data_digest)]
    if manifest is not None:
        lines += [("data", f"{manifest.pairs_out:,} pairs from {manifest.rows_in:,} rows, source {manifest.source}")]
    if training.steps is not None:
        lines += [("steps", f"{training.steps:,} ({training.pairs:,} pairs seen)")]
    style = ref.style
    lines += [
        ("prompt", f"condition {style.condition_position} the scenario as {style.condition}, answer {style.answer}")
    ]
    lines += [("lora", "none: all weights were trained")] if ref.weights else []
    return [*lines, *training.settings.items(), ("config digest", ref.config_digest)]


def limits(facts: CardFacts) -> Iterable[str]:
    """Yield what the policy was not trained for, and the cautions of its evaluations."""
    ref = facts.ref
    sides = sorted(ref.trained_sides)
    if len(sides) == 2:
        yield "It was trained on both poles of each axis above."
    for side in sides if len(sides) == 1 else []:
        names, others = ([axis.poles[s].name for axis in ref.space.axes] for s in (side, 1 - side))
        yield f"It was trained on one pole of each axis only ({', '.join(names)}), and not on {', '.join(others)}."
    yield "Other axes, other wordings of these poles and other prompt layouts were not trained."
    if facts.reports:
        yield (
            "A share of right answers means little alone: compare it with position, which always takes the option at "
            "one place, and with the intervals."
        )
    else:
        yield "No evaluation stands in this card, so nothing here says how well it follows a preference."
    for caution in dict.fromkeys(caution for report in facts.reports for caution in report.cautions):
        yield without_paths(caution)


def license_sentence(facts: CardFacts) -> str:
    if facts.base.license is None:
        return "The license of the base model applies to these weights; it was not found beside the base model."
    return (
        f"The license of the base model, `{facts.base.license}`, applies to these weights. The license of the training "
        "data is not recorded."
    )


def without_paths(text: str) -> str:
    """Replace the paths in a text by their last parts, because folders of a machine are private."""
    return PATH.sub(r"\1", text)
