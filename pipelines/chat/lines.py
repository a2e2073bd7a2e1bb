"""The lines that a person types: a scenario, a scenario with options, or a command."""

from dataclasses import dataclass

from pft_core.errors import UserError

SEPARATOR = "|"  # between a scenario and its options
HELP = (
    "Type a scenario for answers in free text, or `scenario | option | option` for a choice. "
    "/axis NAME changes the axis, /base shows or hides the base model, /quit ends."
)


@dataclass(frozen=True)
class Asked:
    """A scenario to answer, by a choice if it has options."""

    scenario: str
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Command:
    """A word after a slash, and the rest of the line."""

    name: str
    argument: str


def read_line(line: str) -> Asked | Command | None:
    """Read a line; None if it is empty. Raises UserError if a scenario or an option is missing."""
    text = line.strip()
    if not text:
        return None
    if text.startswith("/"):
        name, _, argument = text[1:].partition(" ")
        return Command(name, argument.strip())
    scenario, *options = (part.strip() for part in text.split(SEPARATOR))
    if not all((scenario, *options)) or len(options) == 1:
        raise UserError(f"{text!r}: give a scenario and at least two options, as `scenario | option | option`")
    return Asked(scenario, tuple(options))
