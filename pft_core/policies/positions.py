"""Models that know only so many positions: an embedding, or a table, for each. Beyond, they end in an IndexError."""

from collections.abc import Mapping
from typing import Any

from pft_core.files import read_json
from pft_core.policies.pretrained import cached_folder, local_folder

# By the type of a model: how many it has where its config.json does not say. All others go on as far as is wanted.
POSITIONS = {
    "biogpt": 1024,
    "codegen": 2048,
    "ctrl": 256,
    "gpt2": 1024,
    "gpt_bigcode": 1024,
    "gpt_neo": 2048,
    "gptj": 2048,
    "openai-gpt": 512,
    "opt": 2048,
}


def positions_of(config: Mapping[str, Any]) -> int | None:
    """Return how many positions a model of this config knows; None where it goes on as far as is wanted."""
    default = POSITIONS.get(str(config.get("model_type")))
    if default is None:
        return None
    return int(config.get("n_positions", config.get("max_position_embeddings", default)))


def within_positions(max_length: int, name_or_path: str) -> int:
    """Return the length, or how many positions a model has where these are fewer; found in its config.json.

    Raises UserError for a path that leads nowhere.
    """
    folder = local_folder(name_or_path) or cached_folder(name_or_path)
    file = folder / "config.json" if folder else None
    config = read_json(file, what="a model's config") if file and file.is_file() else {}
    return min(max_length, positions_of(config) or max_length)
