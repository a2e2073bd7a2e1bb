"""A prepared data set's manifest: what `prepare` hands to every later job."""

from dataclasses import asdict, dataclass
from pathlib import Path

from pft_core.data.preferences import PreferenceSpace
from pft_core.errors import UserError
from pft_core.files import read_json, write_json

MANIFEST_NAME = "manifest.json"  # in every folder of records: counts, digests, and the space


@dataclass(frozen=True)
class Shard:
    """One file of a data set: path relative to the manifest, sha256, rows."""

    path: str
    sha256: str
    rows: int


@dataclass(frozen=True)
class DatasetManifest:
    """What `prepare` wrote. Invariant: rows_in = rows_out + rejected, pairs_out = rows_out x len(forms)."""

    source: str
    forms: tuple[str, ...]
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
    request_digest: str = ""  # of input and options, whatever the code; older manifests do not tell it

    def save(self, folder: Path) -> Path:
        """Write manifest.json, last: a folder without it is not a data set."""
        write_json(folder / MANIFEST_NAME, asdict(self))
        return folder / MANIFEST_NAME

    @staticmethod
    def load(folder: Path) -> "DatasetManifest":
        """Read a prepared folder's manifest. Raises UserError where there is none or it is damaged."""
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
    """Return prepared folders with their manifests, None left out. Raises UserError."""
    return [(Path(folder), DatasetManifest.load(Path(folder))) for folder in folders if folder]
