"""The open stages as text: a bar for a terminal, a line for a pipe or a log."""

from dataclasses import dataclass

import psutil
from rich.console import Console, ConsoleOptions, RenderResult
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pipelines.progress.place import Path, Place

SHOWN = (
    "loss",
    "loss_first",
    "loss_second",
    "val_loss",
    "grad_norm",
    "lr",
    "pairs_per_s",
    "tokens_per_s",
    "padding_share",
    "peak_memory_mb",
    "driver_mb",
)
WIDEST_BAR = 30


@dataclass(frozen=True)
class Bar:
    """The live line of a terminal."""

    path: Path

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        place, heading = self.path[-1], heading_of(self.path)
        rest = "  ".join(part for part in (*counted(place), *figures(self.path)) if part)
        room = options.max_width - len(heading) - len(rest) - 4
        if room < 1:
            yield Text(f"{heading}  {rest}", no_wrap=True, overflow="ellipsis")
            return
        line = Table.grid(padding=(0, 2, 0, 0))
        line.add_row(heading, ProgressBar(place.total, place.done, width=min(room, WIDEST_BAR)), rest)
        yield line


def line_of(path: Path) -> str:
    """Return the facts of a bar as a line, which begins with `step N`."""
    place, facts = path[-1], facts_of(path)
    measured = [f"{name} {facts[name]:.4g}" for name in SHOWN if name in facts]
    count, *rest = counted(place)
    return "  ".join(part for part in (f"step {place.done}", *measured, f"{heading_of(path)} {count}", *rest) if part)


def heading_of(path: Path) -> str:
    """Return the name of the innermost stage, after the places of the others."""
    return " · ".join([*(f"{place.name} {place.done}/{place.total}" for place in path[:-1]), path[-1].name])


def counted(place: Place) -> tuple[str, str, str]:
    """Return steps, per cent and time left."""
    percent = 100 * place.done // max(1, place.total)
    left = "" if place.left_s is None or place.done >= place.total else f"{clock(place.left_s)} left"
    return f"{place.done}/{place.total}", f"{percent}%", left


def figures(path: Path) -> list[str]:
    """Return the short form of losses, speed and memory, as a terminal has few columns."""
    facts = facts_of(path)
    losses = [f"{facts[name]:.3f}" for name in ("loss_first", "loss_second") if name in facts]
    if not losses and "loss" in facts:
        losses = [f"{facts['loss']:.3f}"]
    texts = [f"loss {' / '.join(losses)}"] if losses else []
    if "tokens_per_s" in facts:
        texts.append(f"{facts['tokens_per_s']:,.0f} tokens/s")
    memory = [f"{facts[name]:,.0f}" for name in ("peak_memory_mb", "driver_mb") if name in facts]
    return [*texts, f"{' + '.join(memory)} MB"]


def facts_of(path: Path) -> dict[str, float]:
    """Return the facts of all open stages, those of inner stages first, and the memory of this process."""
    facts = {name: value for place in path for name, value in place.facts.items()}
    return facts | {"driver_mb": psutil.Process().memory_info().rss / 2**20}


def clock(seconds: float) -> str:
    """Return a duration as minutes and seconds, with hours if there are any."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
