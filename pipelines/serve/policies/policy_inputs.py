"""Early checks of a server's inputs, which read a few small files before Ray or transformers is imported."""

from pathlib import Path

from pft_core.data import DatasetManifest
from pft_core.errors import UserError
from pft_core.policies import ModelRef, refuse_unusable_model
from pipelines.serve.policies.bare_base import is_bare
from pipelines.serve.serve_config import ServeConfig


def refuse_missing_policies(config: ServeConfig) -> None:
    """Raise UserError if a policy, its base, or another local file of the recipe is missing.

    Places in a bucket or a registry are checked when the server starts.
    """
    ends = [config.ends.first, config.ends.second] if config.ends else []
    for place in filter(_is_here, [config.policy, *config.adapters.values(), *ends]):
        _refuse_missing_policy(place)
    if config.store.root is not None and _is_here(config.store.root) and not Path(config.store.root).is_dir():
        raise UserError(f"store.root={config.store.root}: no such folder")
    if config.steering and not Path(config.steering.vectors).is_file():
        raise UserError(f"steering.vectors={config.steering.vectors}: no such file")
    if config.examples:
        DatasetManifest.load(Path(config.examples))


def _refuse_missing_policy(place: str) -> None:
    if Path(place).is_absolute() and not Path(place).exists():
        raise UserError(f"{place}: no such file or folder: use a run of `pft train`, or a base model")
    if is_bare(place):
        return refuse_unusable_model(place, wants_chat=False)
    ref = ModelRef.load(Path(place).resolve())
    refuse_unusable_model(ref.weights or ref.base, wants_chat=False)


def _is_here(place: str) -> bool:
    return "://" not in place and not place.startswith("models:/")
