"""The data of a suite: prepared once, and cut to the axes and number of records of a variant."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pft_core.data import (
    MANIFEST_NAME,
    RECORD_SCHEMA,
    DatasetManifest,
    PairedExample,
    Shard,
    Split,
    pass_places_on,
    read_records,
)
from pft_core.errors import UserError
from pft_core.files import digest, file_sha256, whole_folder
from pipelines.compare.suite import FILES, SuiteSize
from pipelines.compare.suite_inputs import refuse_missing, released_files
from pipelines.embedded_data import NUM_PER_AXIS, TOYWORLD
from pipelines.prepare import job as prepare

HELD_OUT_SHARE = 0.1  # of the training records, if a data set has no validation split
TEST_SHARE = 0.2  # of the records of a single prepared folder
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


@dataclass(frozen=True)
class SuiteData:
    """Folders of prepared records. name: the data set (`toyworld` also if released files were missing)."""

    name: str
    train: Path
    validation: Path
    test: Path


def suite_data(size: SuiteSize, storage: Path) -> SuiteData:
    """Return prepared train, validation and test records, preparing them if needed. Raises UserError."""
    name = size.data
    if name not in (TOYWORLD, *FILES):
        return prepared_data(Path(name), storage)
    refuse_missing(name)
    folders = {split: storage / name / split for split in SPLITS}
    for split in SPLITS:
        if name == TOYWORLD:
            _prepare({"split": split, "num_per_axis": NUM_PER_AXIS[split]}, name, folders[split], size)
        elif split in FILES[name]:
            _prepare({"input": released_files(name, split)}, name, folders[split], size)
    if name != TOYWORLD and "validation" not in FILES[name]:
        return SuiteData(name, *held_out(folders["train"], storage / name), folders["test"])
    return SuiteData(name, folders["train"], folders["validation"], folders["test"])


def prepared_data(folder: Path, storage: Path) -> SuiteData:
    """Use a folder that `pft prepare` wrote, or one with such folders named train, validation and test.

    Missing test or validation records are split off by scenario. Raises UserError.
    """
    name, test = folder.resolve().name, folder / "test"
    train = folder / "train" if test.is_dir() else folder
    if not test.is_dir():
        train, test = held_out(train, storage / name / "tested", share=TEST_SHARE, salt="test")
    if (folder / "validation").is_dir():
        return SuiteData(name, train, folder / "validation", test)
    return SuiteData(name, *held_out(train, storage / name), test)


def held_out(data: Path, storage: Path, *, share: float = HELD_OUT_SHARE, salt: str = "subset") -> tuple[Path, Path]:
    """Split prepared records into training records and a held-out share, by a hash of their scenarios.

    salt: two successive splits need two different salts, or the second finds nothing. Raises UserError if a part is
    empty, or the records are for evaluation only.
    """
    manifest = DatasetManifest.load(data)
    manifest.refuse_one_pole(data)
    train, validation = (storage / f"{part}-{manifest.data_digest}" for part in ("kept", "held-out"))
    if (train / MANIFEST_NAME).is_file() and (validation / MANIFEST_NAME).is_file():
        return train, validation
    records = list(read_records(data))
    held = {r.id for r in records if int(_hash(r.scenario, salt)[:8], 16) < share * 16**8}
    if len(held) in (0, len(records)):
        raise UserError(f"{data}: {len(records)} records are too few to hold out a share of {share:g}: give more data")
    return (
        _write(train, [r for r in records if r.id not in held], manifest, data),
        _write(validation, [r for r in records if r.id in held], manifest, data),
    )


def _prepare(rows: dict[str, Any], source: Any, output: Path, size: SuiteSize) -> None:
    config = prepare.PrepareConfig(source=source, output=str(output), forms=list(size.forms), **rows)
    prepare.run(config, fresh=True)


def released_file(name: str) -> str | None:
    """Return the path of a file below PFT_DATA; None if it does not exist."""
    path = Path(os.environ.get("PFT_DATA") or os.devnull) / name
    return str(path) if path.is_file() else None


def subset(data: Path, folder: Path, *, axes: Sequence[str] | None, num_records: int | None) -> Path:
    """Return a prepared folder with only these axes and `num_records` records, drawn by a hash of their ids.

    The hash makes a smaller subset part of a larger one. Raises UserError for an unknown axis or too few records.
    """
    if axes is None and num_records is None:
        return data
    if (folder / MANIFEST_NAME).is_file():  # its name identifies its content
        return folder
    manifest = DatasetManifest.load(data)
    for axis in axes or ():
        manifest.space.axis(axis)
    space = manifest.space.restricted_to(axes) if axes else manifest.space
    records = [r for r in read_records(data) if any(axis.name == r.axis for axis in space.axes)]
    if num_records is not None and num_records > len(records):
        raise UserError(
            f"train_size={num_records}: {data} has only {len(records)} records: set it to {len(records)} or less"
        )
    drawn = set(sorted((_hash(r.id), r.id) for r in records)[: num_records or len(records)])
    return _write(folder, [r for r in records if (_hash(r.id), r.id) in drawn], replace(manifest, space=space), data)


def _hash(text: str, salt: str = "subset") -> str:
    return hashlib.sha256(f"{salt}:{text}".encode()).hexdigest()


def _write(folder: Path, records: Sequence[PairedExample], manifest: DatasetManifest, data: Path) -> Path:
    with whole_folder(folder) as unfinished:
        (unfinished / "records").mkdir()
        path = unfinished / "records" / "part-00000.parquet"
        rows = [r.to_row() for r in records]
        pq.write_table(pa.Table.from_pylist(rows, schema=RECORD_SCHEMA), path, compression="zstd")
        pass_places_on(data, unfinished, [r.id for r in records])
        shard = Shard("records/part-00000.parquet", file_sha256(path), len(records))
        replace(
            manifest,
            shards=(shard,),
            rows_in=len(records),
            rows_out=len(records),
            pairs_out=len(records) * len(manifest.forms),
            rejected=0,
            rejected_by_reason={},
            data_digest=digest([[shard.sha256], manifest.forms, manifest.space.to_dict()]),
        ).save(unfinished)
    return folder
