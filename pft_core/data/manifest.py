"""The manifest of a prepared data set, which `prepare` writes and every later job reads."""

from dataclasses import asdict, dataclass
from pathlib import Path

from pft_core.data.preferences import PreferenceSpace
from pft_core.data.records import Form
from pft_core.errors import UserError
from pft_core.files import read_json, write_json

MANIFEST_NAME = "manifest.json"  # in every folder of records: counts, digests, and the space


@dataclass(frozen=True)
class Shard:
    """One file of a data set: its path relative to the manifest, its sha256 and its number of rows."""

    path: str
    sha256: str
    rows: int


@dataclass(frozen=True)
class DatasetManifest:
    """The description of a prepared data set.

    Invariants: rows_in = rows_out + rejected, and pairs_out = rows_out x len(forms).
    """

    source: str
    forms: tuple[Form, ...]
    space: PreferenceSpace
    shards: tuple[Shard, ...]
    rows_in: int
    rows_out: int
    pairs_out: int
    rejected: int
    rejected_by_reason: dict[str, int]
    length_quantiles: dict[str, dict[str, float]]
    config_digest: str
    data_digest: str
    request_digest: str = ""  # of the input and options, independent of the code; older manifests lack it

    def save(self, folder: Path) -> Path:
        """Write manifest.json and return its path. Call this last: a folder without the file is not a data set."""
        write_json(folder / MANIFEST_NAME, asdict(self))
        return folder / MANIFEST_NAME

    @staticmethod
    def load(folder: Path) -> "DatasetManifest":
        """Read the manifest of a prepared folder. Raises UserError if it is missing or damaged."""
        path = folder / MANIFEST_NAME
        raw = read_json(path, what="the manifest of a folder written by `pft prepare`")
        try:
            raw["space"] = PreferenceSpace.from_dict(raw["space"])
            raw["shards"] = tuple(Shard(**s) for s in raw["shards"])
            raw["forms"] = tuple(raw["forms"])
            return DatasetManifest(**raw)
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: not a data set manifest ({error}); run `pft prepare` again") from None


def opened(*folders: str | None) -> list[tuple[Path, DatasetManifest]]:
    """Return the prepared folders with their manifests, without those that are None. Raises UserError."""
    return [(Path(folder), DatasetManifest.load(Path(folder))) for folder in folders if folder]
