"""Find run folders by the files in them, with their sizes on disk."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pft_core.errors import UserError, did_you_mean
from pft_core.evaluation import OUTCOMES_NAME
from pipelines.config import JOB_NAME
from pipelines.reporting import REPORT_NAMES
from pipelines.tracking import ARTIFACTS_NAME

MARKS = {JOB_NAME, REPORT_NAMES[0], OUTCOMES_NAME}  # a folder with one of these files holds a run


@dataclass
class Folder:
    """A folder, its entries' sizes in bytes by name, and the run folders inside it. fault: why it cannot be read."""

    path: Path
    sizes: dict[str, int] = field(default_factory=dict)
    runs: list["Folder"] = field(default_factory=list)
    fault: str | None = None

    @property
    def size(self) -> int:
        """The bytes of all files in it."""
        return sum(self.sizes.values())

    @property
    def holds_a_run(self) -> bool:
        """Whether it is a run's folder; one that cannot be read may be."""
        return self.fault is not None or not MARKS.isdisjoint(self.sizes)


def run_folders(storage: Path) -> list[Folder]:
    """Return the run folders below a folder, at any depth. Raises UserError if there is no such folder."""
    if not storage.is_dir():
        raise UserError(f"{storage}: no such folder: give the storage folder of your runs")
    return measured(storage).runs


def measured(path: Path) -> Folder:
    """Return a folder with sizes and the runs inside it; each file is looked at once, and no link is followed."""
    folder = Folder(path)
    try:
        for entry in _entries(path):
            if not entry.is_dir(follow_symlinks=False):
                folder.sizes[entry.name] = _size(entry)
                continue
            inner = measured(Path(entry.path))
            folder.sizes[entry.name] = inner.size
            if entry.name == ARTIFACTS_NAME:  # MLflow's copies of reports are no runs
                continue
            folder.runs += [inner] if inner.holds_a_run else []
            folder.runs += inner.runs
    except OSError as error:
        folder.fault = f"cannot be read ({error.strerror})"
    return folder


def _entries(path: Path) -> Iterator[os.DirEntry[str]]:
    """Yield the entries of a folder without hidden ones: locks and unfinished writes."""
    with os.scandir(path) as entries:
        yield from (entry for entry in entries if not entry.name.startswith("."))


def _size(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat(follow_symlinks=False).st_size
    except FileNotFoundError:  # deleted since it was listed, as a running training does with checkpoints
        return 0


def run_place(run: str, storage: Path) -> Path:
    """Return the folder of a run: a path, its model_ref.json, or its name below the storage folder.

    Raises UserError if there is no such folder.
    """
    for place in (Path(run), storage / run):
        if place.is_dir():
            return place
        if place.is_file():
            return place.parent
    names = [str(folder.path.relative_to(storage)) for folder in run_folders(storage)] if storage.is_dir() else []
    raise UserError(f"{run}: no such run here or in {storage}.{did_you_mean(run, names)}")
