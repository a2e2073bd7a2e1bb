"""`prepare`: raw rows in; hashed record shards, a manifest and the rejected rows out.

Ray Data runs two rounds of tasks. The first reads and validates parts of the inputs and stages an outcome for every
row; then the driver, which holds each row's id, place and reason, says which go on; the second writes these as shards.
Parts and shards are cut by size alone: the same input gives the same bytes with any number of workers. The output
folder appears whole, when all is written, or not at all.
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
from pft_core.files import contents, digest, file_sha256, restore_folder, whole_folder
from pipelines.console import console
from pipelines.encode import ModelTokenizer
from pipelines.encode.job import ensure_layer
from pipelines.jobs import at_once, code_digest, ensure_ray, locked, refuse_missing_resources, unwrap_user_error
from pipelines.plugins import read_plugins
from pipelines.prepare.outcomes import read_outcomes, refuse_all_of_free_answers, reject_repeated, settle_axes
from pipelines.prepare.parts import PARTS, parts_of
from pipelines.prepare.prepare_config import InputFile, PrepareConfig, local_files, refuse_missing_inputs
from pipelines.prepare.worker import (
    REJECT_SCHEMA,
    GenerateTask,
    ReadTask,
    ShardTask,
    StageTask,
    done,
    stage,
    write_shard,
)

REJECTS_NAME = "rejects.parquet"
RECORDS_NAME = "records"
OWN_NAMES = {MANIFEST_NAME, REJECTS_NAME, RECORDS_NAME, "encoded", *PARTS}
RECORDS_PER_SHARD = 4096
TASK = {"CPU": 1}
QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
# Neither where the result goes nor how fast it is made, nor what is done with it later, changes the records.
NOT_IN_DIGEST = {"output", "num_workers", "model", "prompt", "encoding", "max_reject_fraction", "plugins"}


def run(config: PrepareConfig, *, fresh: bool = False) -> dict[str, Any]:
    """Prepare a data set, or reuse the one in `output` if it came from the same input, config and code.

    fresh: whether a data set of other input or options is replaced. Result: rows_in, rows_out, pairs_out, rejected,
    manifest. Raises UserError for an input that cannot be read, for an output folder that holds something else, and
    where too few rows are left.
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
    """Bring `output` up to date with the config, and add the encoded layer if a model is given."""
    with locked(output):
        restore_folder(output)
        local = local_files(config)
        refuse_foreign_output(output)
        with work_folder(output) as work:
            files = local + hub_files(config, work)
            key = config_digest(config, files)
            manifest = reusable(output, key)
            if manifest is not None and parts_are_whole(output, manifest, config):
                console.print(f"{output}: prepared already from the same input, used again")
                console.print(counted(manifest))
                refuse_too_few(manifest.rejected_by_reason, config, rows_in=manifest.rows_in)
                return encoded(config, output, manifest)
            if not fresh:
                refuse_other_data(output, request_digest(config, files))
            with whole_folder(output) as data:
                return encoded(config, data, write_data(config, files, data, work=work, key=key))


def hub_files(config: PrepareConfig, work: Path) -> list[InputFile]:
    """Fetch the inputs that are hub data sets; their rows come after those of local files."""
    names = [given for given in config.input if is_hub_name(given)]
    return [(load_hub(name, split=config.split, folder=work), name) for name in names]


def config_digest(config: PrepareConfig, files: list[InputFile]) -> str:
    """Return the digest of all that decides the records: the config, the content of the files, and the code."""
    content = [(name, file_sha256(path)) for path, name in files]
    code = [code_digest(), *(plugin.digest for plugin in read_plugins(config.plugins))]
    return digest([config.model_dump(exclude=NOT_IN_DIGEST), content, code])


def request_digest(config: PrepareConfig, files: list[InputFile]) -> str:
    """Return the digest of what was asked for: options and the inputs' content, wherever these lie and by any code."""
    by_folder = SOURCES[config.source].axis_is_folder and config.axis is None
    content = [(path.parent.name if by_folder else "", file_sha256(path)) for path, _ in files]
    return digest([config.model_dump(exclude=NOT_IN_DIGEST | {"input"}), content])


def refuse_other_data(output: Path, request: str) -> None:
    """Raise UserError where the output holds a data set that was made from other input or with other options."""
    made = previous(output)
    if made is not None and made.request_digest != request:
        how = "from other input or with other options" if made.request_digest else "by a version that does not say how"
        raise UserError(
            f"output={output}: holds a data set of {made.rows_out} records that was made {how}: choose another folder, "
            "or let --fresh replace it"
        )


def refuse_foreign_output(output: Path) -> None:
    """Raise UserError where the output is a file, or a folder with anything that `prepare` did not write."""
    if output.exists() and not output.is_dir():
        raise UserError(f"{output}: is a file, and the output has to be a folder: choose another name")
    names = {path.name for path in contents(output)} if output.exists() else set()
    if names and not (names <= OWN_NAMES and previous(output)):
        raise UserError(f"{output}: holds files, and is not a data set that prepare wrote: choose another folder")


def previous(output: Path) -> DatasetManifest | None:
    """Return the manifest of the data set in `output`, None where there is none or it is damaged."""
    try:
        return DatasetManifest.load(output)
    except UserError:
        return None


def reusable(output: Path, key: str) -> DatasetManifest | None:
    """Return the manifest of the data set in `output` if it has this config digest and its files are undamaged."""
    manifest = previous(output)
    return manifest if undamaged(manifest, output, key) and (output / REJECTS_NAME).is_file() else None


def undamaged(manifest: DatasetManifest | None, folder: Path, key: str) -> bool:
    if manifest is None or manifest.config_digest != key:
        return False
    shards = [(folder / shard.path, shard.sha256) for shard in manifest.shards]
    return all(path.is_file() and file_sha256(path) == sha for path, sha in shards)


@contextmanager
def work_folder(output: Path) -> Iterator[Path]:
    """Provide a folder for what is read and staged, on the output's own disk; it is gone afterwards."""
    work = output.with_name(f".{output.name}.work")
    shutil.rmtree(work, ignore_errors=True)  # of a process that was killed
    work.mkdir()
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def write_data(config: PrepareConfig, files: list[InputFile], data: Path, *, work: Path, key: str) -> DatasetManifest:
    """Stage every row in `work`, decide which go on, write shards, rejects and manifest into `data`."""
    num_workers = tasks_of(config)
    tasks = stage_tasks(config, files, work)
    staged = [f for r in done(stage, tasks, num_workers=num_workers, doing="validating") for f in r["files"]]
    if not staged:
        raise UserError(f"input={config.input} holds no rows: check that these are the right files")
    rows, rows_in_file = read_outcomes(staged)
    if "all" in config.forms:
        refuse_all_of_free_answers(rows)
    space = PreferenceSpace(config.source, settle_axes(rows))
    reject_repeated(rows)
    rejects = rows.loc[rows["reason"].notna(), REJECT_SCHEMA.names]
    by_reason = {str(reason): int(count) for reason, count in sorted(rejects["reason"].value_counts().items())}
    refuse_too_few(by_reason, config, rows_in=len(rows), examples=rejects.head(3))
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
        pairs_out=len(kept) * len(forms),
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
    console.print(counted(manifest))
    return manifest


def write_rejects(rejects: pd.DataFrame, data: Path) -> None:
    table = pa.Table.from_pandas(rejects, REJECT_SCHEMA, preserve_index=False).replace_schema_metadata(None)
    pq.write_table(table, data / REJECTS_NAME)


def stage_tasks(config: PrepareConfig, files: list[InputFile], work: Path) -> list[StageTask]:
    plugins = read_plugins(config.plugins)
    return [
        StageTask(origin, str(work / f"staged-{number:05d}"), plugins)
        for number, origin in enumerate(origins(config, files))
    ]


def origins(config: PrepareConfig, files: list[InputFile]) -> list[ReadTask | GenerateTask]:
    """Return where outcomes come from, one for each task of the first round."""
    entry = SOURCES[config.source]
    if not entry.reads_files:
        return [GenerateTask(config.source, config.split, config.seed, config.num_per_axis)]
    parts = [part for path, name in files for part in file_parts(path, name)]
    if entry.is_joined(first_object(parts)):
        # Rows are joined, and the two of a pair may be anywhere.
        return [ReadTask(config.source, tuple(parts), config.axis, joined=True)]
    axis_of_folder = entry.axis_is_folder and config.axis is None
    axes = [Path(part.path).parent.name if axis_of_folder else config.axis for part in parts]
    return [ReadTask(config.source, (part,), axis, joined=False) for part, axis in zip(parts, axes, strict=True)]


def first_object(parts: list[FilePart]) -> dict[str, Any]:
    """Return the first row that is an object; {} where there is none."""
    rows = (row for part in parts for _, row in read_rows(part))
    return next((row for row in rows if isinstance(row, dict)), {})


def tasks_of(config: PrepareConfig) -> Callable[[], int]:
    """Return what says how many tasks may run at once when it matters: small data needs no Ray. Raises UserError."""
    if config.num_workers is not None:
        tasks_at_once(config)  # a wish that the cluster cannot meet is refused, however small the data is
    return partial(tasks_at_once, config)


def tasks_at_once(config: PrepareConfig) -> int:
    """Start or join Ray; return how many tasks may run at once. Raises UserError where it has fewer CPUs."""
    ensure_ray()
    if config.num_workers is None:
        return at_once(TASK, what="a task")
    refuse_missing_resources("num_workers", config.num_workers, TASK)
    return config.num_workers


def refuse_too_few(
    by_reason: dict[str, int], config: PrepareConfig, *, rows_in: int, examples: pd.DataFrame | None = None
) -> None:
    """Raise UserError where no row is left, or more than the config allows are rejected; it shows the first ones."""
    rejected = sum(by_reason.values())
    if rejected < rows_in and rejected <= config.max_reject_fraction * rows_in:
        return
    first = [] if examples is None else examples.itertuples(index=False)
    shown = "".join(f"\n  {row} {key_path}: {reason}: {detail}" for row, key_path, reason, detail in first)
    raise UserError(
        f"{rejected} of {rows_in} rows are rejected{listed(by_reason)}, and at most "
        f"max_reject_fraction={config.max_reject_fraction} of them may be: correct the rows, or check that "
        f"source={config.source} is what the input holds. Nothing is written.{shown}"
    )


def counted(data: DatasetManifest) -> str:
    return f"{data.rows_in} rows in, {data.rows_out} out, {data.rejected} rejected{listed(data.rejected_by_reason)}"


def listed(by_reason: dict[str, int]) -> str:
    most_first = sorted(by_reason.items(), key=lambda item: -item[1])
    return f" ({', '.join(f'{reason} {count}' for reason, count in most_first)})" if by_reason else ""


def write_shards(
    kept: np.ndarray, staged: list[str], rows_in_file: list[int], data: Path, *, num_workers: Callable[[], int]
) -> tuple[tuple[Shard, ...], dict[str, dict[str, float]]]:
    """Write the kept rows (indices over all staged files) as shards; return these and the length quantiles."""
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
    written = done(write_shard, tasks, num_workers=num_workers, doing="writing records")
    shards = tuple(Shard(name, w["sha256"], w["rows"]) for name, w in zip(names, written, strict=True))
    return shards, {
        what: quantiles([length for w in written for length in w[what]])
        for what in ("scenario_characters", "option_characters")
    }


def write_parts(
    data: Path, manifest: DatasetManifest, shares: Sequence[float], *, num_workers: Callable[[], int]
) -> None:
    """Write the records once more, as a data set for each part, in a folder of its name."""
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
            pairs_out=len(kept) * len(manifest.forms),
            rejected=0,
            rejected_by_reason={},
            length_quantiles=lengths,
            config_digest=digest([manifest.config_digest, name]),
            data_digest=data_digest(shards, manifest.forms, space),
            request_digest=digest([manifest.request_digest, name]),
        ).save(data / name)
        console.print(f"{name}: {len(kept)} rows")


def data_digest(shards: Sequence[Shard], forms: Sequence[str], space: PreferenceSpace) -> str:
    """Forms and wording count: with other ones the same shards train another policy."""
    return digest([[shard.sha256 for shard in shards], forms, space.to_dict()])


def parts_are_whole(output: Path, manifest: DatasetManifest, config: PrepareConfig) -> bool:
    """Whether each part that the config asks for is there and undamaged."""
    names = PARTS if config.split_by else ()
    keys = [(output / name, digest([manifest.config_digest, name])) for name in names]
    return all(undamaged(previous(folder), folder, key) for folder, key in keys)


def quantiles(lengths: Any) -> dict[str, float]:
    return {name: float(np.quantile(lengths, q, method="inverted_cdf")) for name, q in QUANTILES.items()}


def encoded(config: PrepareConfig, data: Path, manifest: DatasetManifest) -> DatasetManifest:
    """Add the encoded layer for the config's model, and the tokens of one side of a pair to the manifest.

    A data set in parts has a layer in each of these, as these are what is trained on.
    """
    if config.model is None:
        return manifest
    if config.split_by:
        for name in PARTS:
            whole = config.model_copy(update={"split_by": None})
            encoded(whole, data / name, DatasetManifest.load(data / name))
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
        concurrency=tasks_at_once(config),
    )
    layer = EncodedLayer(folder)
    tokens = (layer.prefix_lengths_E[:, None] + layer.branch_lengths_EB).ravel()
    manifest = replace(manifest, length_quantiles={**manifest.length_quantiles, "tokens": quantiles(tokens)})
    manifest.save(data)
    return manifest
