"""Checkpoints: every rank writes its own folder, rank 0 writes the manifest last, and readers trust only the manifest.

The manifest lists the size and sha256 of all ranks' files, gathered over torch.distributed. Ranks may share the
checkpoint folder, or each write a local folder of the same name whose files are merged afterwards. A folder without a
manifest is not a checkpoint.
"""

import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from pft_core.errors import UserError
from pft_core.files import digest, file_sha256, read_json, write_json
from pft_core.training.ranks import num_ranks, this_rank

if TYPE_CHECKING:
    from pft_core.training.engines import Engine

log = logging.getLogger(__name__)

CHECKPOINT_MANIFEST_NAME = "MANIFEST.json"  # in every checkpoint: its files and their digests
_FORMAT = 1


class CheckpointError(UserError):
    """Raised if a checkpoint cannot be written, or differs from what was written; the message names the file."""


def save(
    folder: Path,
    *,
    engine: "Engine",
    progress: dict[str, Any],
    rank: int,
    world_size: int,
    write_policy: Callable[[Path], None] | None = None,
) -> None:
    """Write a checkpoint; all ranks must call it. progress: JSON values that the loop needs to resume, equal on all
    ranks.

    write_policy: called on rank 0 to write the policy (adapter or full weights). Raises CheckpointError on every rank
    if one of them cannot write, for example because the disk is full.
    """
    files, fault = {}, None
    try:
        engine.save(rank_folder(folder, rank))
        if rank == 0 and write_policy is not None:
            write_policy(policy_folder(folder))
        written = (path for path in sorted(rank_folder(folder, rank).rglob("*")) if path.is_file())
        files = {_name(path, folder): _facts(path) for path in written}
    except UserError as error:
        fault = str(error)
    except (OSError, SafetensorError) as error:
        fault = f"{rank_folder(folder, rank)}: cannot write the checkpoint ({error}); free disk space and run again"
    outcomes = _gather((files, fault), world_size)
    _raise_first([fault for _, fault in outcomes])
    if rank == 0:
        all_files = {name: facts for files, _ in outcomes for name, facts in files.items()}
        content = {"format": _FORMAT, "world_size": world_size, "progress": progress, "files": all_files}
        write_json(folder / CHECKPOINT_MANIFEST_NAME, content | {"digest": digest(content)})


def verify_checkpoint(folder: Path) -> dict[str, Any]:
    """Return the manifest of a checkpoint after checking every file's size and hash. Raises CheckpointError if a file
    is missing or damaged."""
    manifest = _read_manifest(folder)
    for name, facts in manifest["files"].items():
        _check_file(folder / name, facts)
    return manifest


def restore(folder: Path, *, engine: "Engine") -> dict[str, Any]:
    """Load a checkpoint into the engine and return its progress. All ranks must call it, at the world size that wrote
    the checkpoint.

    Each rank checks its own files before any rank loads. Raises CheckpointError on all ranks if one finds damage.
    """
    rank, world_size = this_rank(), num_ranks()
    manifest, fault = {}, None
    try:
        manifest = _read_manifest(folder)
        _require_world_size(folder, manifest["world_size"], world_size)
        for name, facts in manifest["files"].items():
            if (folder / name).is_relative_to(rank_folder(folder, rank)):
                _check_file(folder / name, facts)
    except CheckpointError as error:
        fault = str(error)
    _raise_first(_gather(fault, world_size))
    engine.load(rank_folder(folder, rank))
    progress: dict[str, Any] = manifest["progress"]
    return progress


def newest_verified(folders: Iterable[Path]) -> Path | None:
    """Return the first of these folders that holds an undamaged checkpoint, or None. folders: newest first."""
    for folder in folders:
        try:
            verify_checkpoint(folder)
        except CheckpointError as error:
            log.warning("%s; an older checkpoint is used", error)
        else:
            return folder
    return None


def rank_folder(folder: Path, rank: int) -> Path:
    """Return the folder of a rank inside a checkpoint."""
    return folder / f"rank-{rank:05d}"


def policy_folder(folder: Path) -> Path:
    """Return the folder inside a checkpoint that holds its policy (adapter or full weights)."""
    return rank_folder(folder, 0) / "policy"


def _name(file: Path, folder: Path) -> str:
    return file.relative_to(folder).as_posix()


def _facts(file: Path) -> dict[str, Any]:
    return {"bytes": file.stat().st_size, "sha256": file_sha256(file)}


def _read_manifest(folder: Path) -> dict[str, Any]:
    file = folder / CHECKPOINT_MANIFEST_NAME
    try:
        manifest = read_json(file, what="the manifest of a checkpoint")
    except UserError as error:
        raise CheckpointError(str(error)) from None
    content = {key: value for key, value in manifest.items() if key != "digest"} if isinstance(manifest, dict) else {}
    if not content or manifest.get("digest") != digest(content) or manifest["format"] != _FORMAT:
        raise CheckpointError(f"{file}: damaged, or written by an incompatible version; delete {folder} and run again")
    return content


def _check_file(file: Path, facts: dict[str, Any]) -> None:
    if not file.is_file():
        raise CheckpointError(f"{file}: missing from the checkpoint; delete this checkpoint and run again")
    if file.stat().st_size != facts["bytes"]:
        fault = f"has {file.stat().st_size} bytes, but {facts['bytes']} were written"
    elif file_sha256(file) != facts["sha256"]:
        fault = "has changed since it was written"
    else:
        return
    raise CheckpointError(f"{file}: {fault}; delete this checkpoint and run again")


def _require_world_size(folder: Path, written: int, present: int) -> None:
    if written != present:
        raise CheckpointError(
            f"{folder}: written by {written} workers, but this run has {present}; "
            f"set scaling.num_workers={written}, or start over with --fresh"
        )


def _gather(value: Any, world_size: int) -> list[Any]:
    if world_size == 1:
        return [value]
    import torch.distributed as dist

    values: list[Any] = [None] * world_size
    dist.all_gather_object(values, value)
    return values


def _raise_first(faults: list[str | None]) -> None:
    # All ranks raise together: a rank that went on would wait forever in the next collective.
    for fault in faults:
        if fault:
            raise CheckpointError(fault)
