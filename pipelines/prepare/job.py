"""The `prepare` job: raw rows into hashed record shards, a manifest and a file of rejected rows.

Ray Data runs two rounds of tasks. The first round reads and validates parts of the input and stages an outcome for
every row. The driver, which holds the id, place and reason of every row, then decides which rows to keep. The second
round writes these as shards. Parts and shards are cut by size alone, so the same input gives the same bytes with any
number of workers. The output folder appears whole when everything is written, or not at all.
"""

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from pft_core.data import (
    MANIFEST_NAME,
    SOURCES,
    DatasetManifest,
    FilePart,
    PreferenceSpace,
    Shard,
    file_parts,
    is_hub_name,
    load_hub,
    pass_places_on,
    read_rows,
    scenarios_and_axes,
    write_places,
)
from pft_core.encoding import EncodedLayer, EncodingSpec
from pft_core.errors import UserError
from pft_core.evaluation import BASE_ANSWERS_NAME
from pft_core.files import contents, digest, file_sha256, restore_folder, whole_folder
from pipelines.console import console
from pipelines.encode import ModelTokenizer
from pipelines.encode.job import ensure_layer
from pipelines.jobs import code_digest, ensure_ray, locked, num_parallel, refuse_missing_resources, unwrap_user_error
from pipelines.plugins import read_plugins
from pipelines.prepare.cross_row_checks import read_outcomes, refuse_all_of_free_answers, reject_repeated, settle_axes
from pipelines.prepare.parts import PARTS, parts_of
from pipelines.prepare.prepare_config import InputFile, PrepareConfig, local_files, refuse_missing_inputs
from pipelines.prepare.prepare_tasks import (
    REJECT_SCHEMA,
    GenerateTask,
    ReadTask,
    ShardTask,
    StageTask,
    run_tasks,
    stage,
    write_shard,
)

REJECTS_NAME = "rejects.parquet"
RECORDS_NAME = "records"
OWN_NAMES = {MANIFEST_NAME, REJECTS_NAME, RECORDS_NAME, "encoded", BASE_ANSWERS_NAME, *PARTS}
RECORDS_PER_SHARD = 4096
TASK = {"CPU": 1}
QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
# The records do not depend on where they are written, how fast, or what they are used for later.
NOT_IN_DIGEST = {"output", "num_workers", "model", "prompt", "encoding", "max_reject_fraction", "plugins"}


def run(config: PrepareConfig, *, fresh: bool = False) -> dict[str, Any]:
    """Prepare a data set, or reuse the one in `output` if it came from the same input, config and code.

    fresh: whether to replace a data set from other input or options. Result: rows_in, rows_out, pairs_out, rejected,
    manifest. Raises UserError if the input cannot be read, the output folder holds something else, or too few rows
    are left.
    """
    refuse_missing_inputs(config)
    try:
        manifest = prepare(config, Path(config.output).resolve(), fresh=fresh)
    except Exception as error:
        mistake = unwrap_user_error(error)
        if mistake is None:
            raise
        raise mistake from None
    folders = {"parts": {name: str(Path(config.output).resolve() / name) for name in PARTS}} if config.split_by else {}
    counts = {name: getattr(manifest, name) for name in ("rows_in", "rows_out", "pairs_out", "rejected")}
    return {**counts, "manifest": str(Path(config.output).resolve() / MANIFEST_NAME), **folders}


def prepare(config: PrepareConfig, output: Path, *, fresh: bool = False) -> DatasetManifest:
    """Bring `output` up to date with the config, and add the encoded layer if the config names a model."""
    with locked(output):
        restore_folder(output)
        local = local_files(config)
        refuse_foreign_output(output)
        with work_folder(output) as work:
            files = local + hub_files(config, work)
            key = config_digest(config, files)
            manifest = reusable(output, key)
            if manifest is not None and parts_are_complete(output, manifest, config):
                console.print(f"{output}: already prepared from the same input: reusing it")
                console.print(summary(manifest) + first_reject(output, config), highlight=False, soft_wrap=True)
                refuse_too_few(manifest.rejected_by_reason, config, rows_in=manifest.rows_in)
                return add_encoded_layer(config, output, manifest)
            if not fresh:
                refuse_other_data(output, request_digest(config, files))
            with whole_folder(output) as data:
                return add_encoded_layer(config, data, write_data(config, files, data, work=work, key=key))


def hub_files(config: PrepareConfig, work: Path) -> list[InputFile]:
    """Download the inputs that are Hugging Face data sets; their rows follow those of local files."""
    names = [name for name in config.input if is_hub_name(name)]
    return [(load_hub(name, split=config.split, folder=work), name) for name in names]


def config_digest(config: PrepareConfig, files: list[InputFile]) -> str:
    """Return the digest of all that determines the records: config, content of the files, and code."""
    content = [(name, file_sha256(path)) for path, name in files]
    code = [code_digest(), *(plugin.digest for plugin in read_plugins(config.plugins))]
    return digest([config.model_dump(exclude=NOT_IN_DIGEST), content, code])


def request_digest(config: PrepareConfig, files: list[InputFile]) -> str:
    """Return the digest of the request: options and the content of the inputs, regardless of path and code version."""
    entry = SOURCES[config.source]
    content = [((config.axis is None and entry.axis_of(path)) or "", file_sha256(path)) for path, _ in files]
    return digest([config.model_dump(exclude=NOT_IN_DIGEST | {"input"}), content])


def refuse_other_data(output: Path, request: str) -> None:
    """Raise UserError if the output holds a data set from other input or options."""
    old = previous_manifest(output)
    if old is not None and old.request_digest != request:
        how = "from other input or with other options" if old.request_digest else "by a version that did not record how"
        raise UserError(
            f"output={output}: holds a data set of {old.rows_out} records that was made {how}: choose another folder, "
            "or replace it with --fresh"
        )


def refuse_foreign_output(output: Path) -> None:
    """Raise UserError if the output is a file, or a folder with files that `prepare` did not write."""
    if output.exists() and not output.is_dir():
        raise UserError(f"{output}: is a file, but the output must be a folder: choose another name")
    names = {path.name for path in contents(output)} if output.exists() else set()
    if names and not (names <= OWN_NAMES and previous_manifest(output)):
        raise UserError(f"{output}: holds files that `pft prepare` did not write: choose another folder")


def previous_manifest(output: Path) -> DatasetManifest | None:
    """Return the manifest of the data set in `output`; None if it is missing or damaged."""
    try:
        return DatasetManifest.load(output)
    except UserError:
        return None


def reusable(output: Path, key: str) -> DatasetManifest | None:
    """Return the manifest of the data set in `output` if it has this config digest and its files are undamaged."""
    manifest = previous_manifest(output)
    return manifest if is_undamaged(manifest, output, key) and (output / REJECTS_NAME).is_file() else None


def is_undamaged(manifest: DatasetManifest | None, folder: Path, key: str) -> bool:
    if manifest is None or manifest.config_digest != key:
        return False
    shards = [(folder / shard.path, shard.sha256) for shard in manifest.shards]
    return all(path.is_file() and file_sha256(path) == sha for path, sha in shards)


@contextmanager
def work_folder(output: Path) -> Iterator[Path]:
    """Provide a temporary folder for downloaded and staged files on the disk of the output."""
    work = output.with_name(f".{output.name}.work")
    shutil.rmtree(work, ignore_errors=True)  # left by a process that was killed
    work.mkdir()
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def write_data(config: PrepareConfig, files: list[InputFile], data: Path, *, work: Path, key: str) -> DatasetManifest:
    """Stage every row in `work`, decide which rows to keep, and write shards, rejects and manifest to `data`."""
    num_workers = lazy_num_tasks(config)
    tasks = stage_tasks(config, files, work)
    staged = [f for r in run_tasks(stage, tasks, num_workers=num_workers, doing="validating") for f in r["files"]]
    if not staged:
        raise UserError(f"input={','.join(config.input)} holds no rows: check the path")
    rows, rows_in_file = read_outcomes(staged)
    if "all" in config.forms:
        refuse_all_of_free_answers(rows)
    space = PreferenceSpace(config.source, settle_axes(rows))
    reject_repeated(rows)
    rejects = rows.loc[rows["reason"].notna(), REJECT_SCHEMA.names]
    by_reason = {str(reason): int(count) for reason, count in sorted(rejects["reason"].value_counts().items())}
    refuse_too_few(by_reason, config, rows_in=len(rows), examples=rejects)
    write_rejects(rejects, data)
    kept = np.flatnonzero(rows["reason"].isna())
    shards, lengths = write_shards(kept, staged, rows_in_file, data, num_workers=num_workers)
    write_places(data, rows["id"].iloc[kept].tolist(), rows["row"].iloc[kept].tolist())
    forms = tuple(sorted(set(config.forms), reverse=True))
    manifest = DatasetManifest(
        source=config.source,
        forms=forms,
        space=space,
        shards=shards,
        rows_in=len(rows),
        rows_out=len(kept),
        pairs_out=num_pairs(len(kept), forms, space),
        rejected=len(rejects),
        rejected_by_reason=by_reason,
        length_quantiles=lengths,
        config_digest=key,
        data_digest=data_digest(shards, forms, space),
        request_digest=request_digest(config, files),
    )
    manifest.save(data)
    if config.split_by:
        write_parts(data, manifest, config.parts or (0.8, 0.1, 0.1), num_workers=num_workers)
    console.print(summary(manifest) + first_reject(data, config), highlight=False, soft_wrap=True)
    return manifest


def num_pairs(num_records: int, forms: Sequence[str], space: PreferenceSpace) -> int:
    """Return the number of training pairs, which is 0 if an axis has one pole."""
    return 0 if space.one_pole_axes else num_records * len(forms)


def write_rejects(rejects: pd.DataFrame, data: Path) -> None:
    table = pa.Table.from_pandas(rejects, REJECT_SCHEMA, preserve_index=False).replace_schema_metadata(None)
    pq.write_table(table, data / REJECTS_NAME)


def first_reject(data: Path, config: PrepareConfig) -> str:
    """Say which row was rejected first and where all rejects are, "" if there is none. data: the folder with them."""
    rejects = pq.read_table(data / REJECTS_NAME).slice(0, 1).to_pylist()
    if not rejects:
        return ""
    (first,) = rejects
    place = first["row"] if first["key_path"] in first["detail"] else f"{first['row']} {first['key_path']}"
    return f"; first: {place}: {first['detail']}; all in {Path(config.output) / REJECTS_NAME}"


def stage_tasks(config: PrepareConfig, files: list[InputFile], work: Path) -> list[StageTask]:
    plugins = read_plugins(config.plugins)
    return [
        StageTask(task_input, str(work / f"staged-{number:05d}"), plugins)
        for number, task_input in enumerate(task_inputs(config, files))
    ]


def task_inputs(config: PrepareConfig, files: list[InputFile]) -> list[ReadTask | GenerateTask]:
    """Return the inputs of the tasks of the first round, one per task."""
    entry = SOURCES[config.source]
    if not entry.reads_files:
        arguments = {name: getattr(config, name) for name in ("split", *entry.takes)}
        return [GenerateTask(config.source, arguments)]
    parts = [part for path, name in files for part in file_parts(path, name)]
    axes = [config.axis or entry.axis_of(Path(part.path)) for part in parts]
    if not entry.is_joined(first_object(parts)):
        return [ReadTask(config.source, (part,), axis, joined=False) for part, axis in zip(parts, axes, strict=True)]
    # The two rows of a pair may be anywhere in the input, or in the files of one axis.
    by_axis: dict[str | None, list[FilePart]] = {}
    for part, axis in zip(parts, axes, strict=True):
        by_axis.setdefault(axis, []).append(part)
    return [ReadTask(config.source, tuple(of_axis), axis, joined=True) for axis, of_axis in by_axis.items()]


def first_object(parts: list[FilePart]) -> dict[str, Any]:
    """Return the first row that is a JSON object; {} if there is none."""
    rows = (row for part in parts for _, row in read_rows(part))
    return next((row for row in rows if isinstance(row, dict)), {})


def lazy_num_tasks(config: PrepareConfig) -> Callable[[], int]:
    """Return a function that returns the number of parallel tasks; small data never calls it, and starts no Ray.

    Raises UserError if the cluster has too few CPUs for num_workers.
    """
    if config.num_workers is not None:
        num_parallel_tasks(config)  # a num_workers that the cluster cannot run is refused even for small data
    return partial(num_parallel_tasks, config)


def num_parallel_tasks(config: PrepareConfig) -> int:
    """Start or join Ray; return the number of parallel tasks. Raises UserError if the cluster has too few CPUs."""
    ensure_ray()
    if config.num_workers is None:
        return num_parallel(TASK, what="a task")
    refuse_missing_resources("num_workers", config.num_workers, TASK)
    return config.num_workers


def refuse_too_few(
    by_reason: dict[str, int], config: PrepareConfig, *, rows_in: int, examples: pd.DataFrame | None = None
) -> None:
    """Raise UserError if no row is left or more are rejected than the config allows.

    examples: the rejected rows; the message shows the first three that differ in more than their place.
    """
    rejected = sum(by_reason.values())
    if rejected < rows_in and rejected <= config.max_reject_fraction * rows_in:
        return
    shown = "" if examples is None else "".join(f"\n  {line}" for line in first_that_differ(examples, 3))
    raise UserError(
        f"{rejected} of {rows_in} rows are rejected{reason_counts(by_reason)}, more than "
        f"max_reject_fraction={config.max_reject_fraction} allows: correct the rows or the names of their columns, or "
        f"check that source={config.source} is the format of the input. Nothing was written.{shown}"
    )


def first_that_differ(rejects: pd.DataFrame, num: int) -> list[str]:
    """Describe the first rejects that differ in more than their place, each with the number of rows alike."""
    alike = rejects.groupby(["key_path", "reason", "detail"], sort=False, dropna=False)["row"].agg(["first", "size"])
    return [
        f"{first} {key_path}: {reason}: {detail}" + (f" ({size - 1} more like it)" if size > 1 else "")
        for (key_path, reason, detail), first, size in list(alike.itertuples())[:num]
    ]


def summary(data: DatasetManifest) -> str:
    return (
        f"{data.rows_in} rows in, {data.rows_out} out, {data.rejected} rejected{reason_counts(data.rejected_by_reason)}"
    )


def reason_counts(by_reason: dict[str, int]) -> str:
    most_first = sorted(by_reason.items(), key=lambda item: -item[1])
    return f" ({', '.join(f'{reason} {count}' for reason, count in most_first)})" if by_reason else ""


def write_shards(
    kept: np.ndarray, staged: list[str], rows_in_file: list[int], data: Path, *, num_workers: Callable[[], int]
) -> tuple[tuple[Shard, ...], dict[str, dict[str, float]]]:
    """Write the kept rows (indices over all staged files) as shards; return the shards and the length quantiles."""
    (data / RECORDS_NAME).mkdir()
    ends = np.cumsum(rows_in_file)
    names: list[str] = []
    tasks: list[ShardTask] = []
    for start in range(0, len(kept), RECORDS_PER_SHARD):
        chunk = kept[start : start + RECORDS_PER_SHARD]
        file_of = np.searchsorted(ends, chunk, side="right")
        pieces = [
            (staged[f], (chunk[file_of == f] - ends[f] + rows_in_file[f]).tolist()) for f in np.unique(file_of).tolist()
        ]
        names.append(f"{RECORDS_NAME}/part-{len(names):05d}.parquet")
        tasks.append(ShardTask(str(data / names[-1]), tuple(pieces)))
    written = run_tasks(write_shard, tasks, num_workers=num_workers, doing="writing records")
    shards = tuple(Shard(name, w["sha256"], w["rows"]) for name, w in zip(names, written, strict=True))
    return shards, {
        what: quantiles([length for w in written for length in w[what]])
        for what in ("scenario_characters", "option_characters")
    }


def write_parts(
    data: Path, manifest: DatasetManifest, shares: Sequence[float], *, num_workers: Callable[[], int]
) -> None:
    """Write the records again as one data set per part, each in a folder named after the part."""
    scenarios, axes = scenarios_and_axes(data, manifest)
    part_of = parts_of(scenarios, shares)
    whole, rows_in_file = [str(data / s.path) for s in manifest.shards], [s.rows for s in manifest.shards]
    ids = pa.concat_tables(pq.read_table(shard, columns=["id"]) for shard in whole)["id"]
    for number, name in enumerate(PARTS):
        kept = np.flatnonzero(part_of == number)
        (data / name).mkdir()
        shards, lengths = write_shards(kept, whole, rows_in_file, data / name, num_workers=num_workers)
        pass_places_on(data, data / name, ids.take(kept).to_pylist())
        space = manifest.space.restricted_to(axes[kept].tolist())
        replace(
            manifest,
            space=space,
            shards=shards,
            rows_in=len(kept),
            rows_out=len(kept),
            pairs_out=num_pairs(len(kept), manifest.forms, space),
            rejected=0,
            rejected_by_reason={},
            length_quantiles=lengths,
            config_digest=digest([manifest.config_digest, name]),
            data_digest=data_digest(shards, manifest.forms, space),
            request_digest=digest([manifest.request_digest, name]),
        ).save(data / name)
        console.print(f"{name}: {len(kept)} rows")


def data_digest(shards: Sequence[Shard], forms: Sequence[str], space: PreferenceSpace) -> str:
    """Return the digest of shards, forms and axis wording, which all change the trained policy."""
    return digest([[shard.sha256 for shard in shards], forms, space.to_dict()])


def parts_are_complete(output: Path, manifest: DatasetManifest, config: PrepareConfig) -> bool:
    """Return whether every part that the config requests exists undamaged."""
    names = PARTS if config.split_by else ()
    keys = [(output / name, digest([manifest.config_digest, name])) for name in names]
    return all(is_undamaged(previous_manifest(folder), folder, key) for folder, key in keys)


def quantiles(lengths: Any) -> dict[str, float]:
    return {name: float(np.quantile(lengths, q, method="inverted_cdf")) for name, q in QUANTILES.items()}


def add_encoded_layer(config: PrepareConfig, data: Path, manifest: DatasetManifest) -> DatasetManifest:
    """Add the encoded layer for the config's model, and the token counts of one side of a pair to the manifest.

    A data set in parts gets a layer in each part, since training reads the parts.
    """
    if config.model is None:
        return manifest
    manifest.refuse_one_pole(config.output)
    if config.split_by:
        for name in PARTS:
            of_part = config.model_copy(update={"split_by": None})
            add_encoded_layer(of_part, data / name, DatasetManifest.load(data / name))
        return manifest
    model = str(Path(config.model).resolve()) if Path(config.model).exists() else config.model
    tokenizer = ModelTokenizer(model)
    facts = tokenizer.facts(config.prompt)
    folder = ensure_layer(
        data,
        manifest,
        tokenizer=tokenizer,
        facts=facts,
        spec=EncodingSpec(facts.style, config.encoding),
        max_reject_fraction=config.max_reject_fraction,
        concurrency=num_parallel_tasks(config),
    )
    layer = EncodedLayer(folder)
    tokens = (layer.prefix_lengths_E[:, None] + layer.branch_lengths_EB).ravel()
    manifest = replace(manifest, length_quantiles={**manifest.length_quantiles, "tokens": quantiles(tokens)})
    manifest.save(data)
    return manifest
