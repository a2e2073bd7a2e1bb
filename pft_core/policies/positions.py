"""Models with a limited number of positions, each with an embedding or a row of a table.

Beyond the limit, such a model fails with an IndexError.
"""

from collections.abc import Mapping
from typing import Any

from pft_core.files import read_json
from pft_core.policies.pretrained import cached_folder, local_folder

# The default number of positions by model type, if config.json does not set it. Other types have no limit.
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
    """Return the number of positions of a model with this config; None if there is no limit."""
    default = POSITIONS.get(str(config.get("model_type")))
    if default is None:
        return None
    return int(config.get("n_positions", config.get("max_position_embeddings", default)))


def within_positions(max_length: int, name_or_path: str) -> int:
    """Return the maximum length, reduced to the number of positions that a model has according to its config.json.

    Raises UserError if the path does not exist.
    """
    folder = local_folder(name_or_path) or cached_folder(name_or_path)
    file = folder / "config.json" if folder else None
    config = read_json(file, what="a model's config") if file and file.is_file() else {}
    return min(max_length, positions_of(config) or max_length)
