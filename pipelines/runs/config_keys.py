"""Configs as dotted keys: those that differ from the defaults, and those that differ between runs."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.config import RunConfig
from pipelines.evaluate import EvaluateConfig
from pipelines.tracking import mask_credentials


def changed_keys(kind: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of a config that differ from their defaults; all keys of a comparison, which has no defaults."""
    defaults = flat(defaults_of(kind))
    return {key: value for key, value in flat(config).items() if key not in defaults or defaults[key] != value}


def defaults_of(kind: str) -> dict[str, Any]:
    """Return the defaults of a run's config, as JSON holds them."""
    if kind == "compare":
        return {}
    model = EvaluateConfig.model_construct() if kind == "evaluate" else RunConfig()
    return dict(json.loads(model.model_dump_json()))


def differing_keys(configs: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Return the keys whose values differ, each with one value for each config; None if a config lacks the key."""
    rows = [flat(config) for config in configs]
    keys = dict.fromkeys(key for row in rows for key in row)
    values = {key: [row.get(key) for row in rows] for key in keys}
    return {key: own for key, own in values.items() if any(value != own[0] for value in own)}


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a nested config as dotted keys, without credentials; a list and an empty section are values."""
    result: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            result |= flat(value, f"{prefix}{key}.")
        else:
            result[f"{prefix}{key}"] = mask_credentials(value) if isinstance(value, str) else value
    return result
