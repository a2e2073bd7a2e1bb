"""Combinations of config values that validation refuses, found by validating every pair of values."""

import re
import types
from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from docs.generators.markdown import code, table
from docs.generators.schema_types import json_text
from pft_core.data import SOURCES
from pft_core.errors import UserError
from pft_core.evaluation import TASKS
from pft_core.objectives import OBJECTIVES
from pft_core.settings import Settings
from pft_core.training.engines.registry import ENGINES
from pipelines.config import RunConfig
from pipelines.evaluate.evaluate_config import EvaluateConfig
from pipelines.prepare.prepare_config import PrepareConfig
from pipelines.serve.engine_registry import SERVING_ENGINES
from pipelines.serve.serve_config import ServeConfig
from pipelines.validated_yaml import build

Setting = tuple[str, Any]

VALUES = re.compile(r"=\S+|takes [^:]*")  # what differs between messages for one reason

# What the type of a key does not tell: names in registries, and one value of each kind that a reader may give.
NAMED: Mapping[str, tuple[Any, ...]] = {
    "train.objective": tuple(OBJECTIVES),
    "engine.name": tuple(ENGINES),
    "train.alpha": (0.0, 0.5),
    "train.beta": (0.0, 0.5),
    "train.preference_beta": (0.2,),
    "train.simpo_gamma": (0.5,),
    "train.nll_weight": (0.5,),
    "train.diagnostics_every": (10,),
    "train.pairs_per_microbatch": (3, 4),
    "scaling.resources_per_worker": ({"CPU": 1}, {"CPU": 1, "GPU": 1}),
    "storage": ("s3://bucket/runs",),
    "search.t.log": (),  # a range is given whole
}
ROOTS: Mapping[str, tuple[type[BaseModel], dict[str, Any], Mapping[str, tuple[Any, ...]]]] = {
    "Training": (RunConfig, {}, NAMED),
    "Serving": (
        ServeConfig,
        {"policy": "toyworld"},
        {
            "engine.name": tuple(SERVING_ENGINES),
            "steering": ({"vectors": "FILE", "layer": 3, "multiplier": 1.0},),
            "host": ("0.0.0.0",),
            "keys": ("keys.json",),
            "name": ("base",),
        },
    ),
    "Preparation": (
        PrepareConfig,
        {"source": "json", "output": "DIR"},
        {
            "source": tuple(SOURCES),
            "axis": ("Pace",),
            "split": ("test", "unseen"),
            "seed": (1,),
            "num_per_axis": (10,),
            "parts": ([0.8, 0.1, 0.1],),
        },
    ),
    "Evaluation": (
        EvaluateConfig,
        {"model": "DIR", "data": "DIR", "output": "DIR"},
        {
            "task": tuple(TASKS),
            "endpoint": ("http://127.0.0.1:8000",),
            "adapter": ("DIR",),
            "forms": (["one"],),
            "limit_per_axis": (10,),
            "seed": (1,),
        },
    ),
}


def refusals() -> str:
    """Return a table for each kind of config. Of refusals for one reason, by the same keys, the first is shown."""
    parts = []
    for title, (model, fixed, named) in ROOTS.items():
        alike: dict[tuple[str, ...], list[tuple[str, str]]] = {}
        for settings, message in refused(model, fixed, named):
            reason = (*(key for key, _ in settings), VALUES.sub("", message))
            alike.setdefault(reason, []).append((" with ".join(map(assigned, settings)), message))
        rows = [(f"{shown[0][0]}{others(len(shown) - 1)}", shown[0][1]) for shown in alike.values()]
        parts += [f"### {title}", table(("Refused", "Message"), rows)]
    return "\n\n".join(parts)


def others(number: int) -> str:
    return f" and {number} more" if number else ""


def assigned(setting: Setting) -> str:
    return code(f"{setting[0]}={json_text(setting[1])}")


def refused(
    model: type[BaseModel], fixed: dict[str, Any], named: Mapping[str, tuple[Any, ...]]
) -> Iterator[tuple[tuple[Setting, ...], str]]:
    """Yield the values that are refused by themselves, then the pairs of the others that are, each with its message."""
    alone = []
    for setting in candidates(model, named, ""):
        if (message := why_not(model, fixed, [setting])) is None:
            alone.append(setting)
        else:
            yield (setting,), message
    for first, second in combinations(alone, 2):
        if first[0] != second[0] and (message := why_not(model, fixed, [first, second])) is not None:
            yield (first, second), message


def candidates(model: type[BaseModel], named: Mapping[str, tuple[Any, ...]], prefix: str) -> Iterator[Setting]:
    """Yield values other than the default of every key that takes few, and those named."""
    for name, field in model.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, Settings):
            yield from candidates(section, named, f"{prefix}{name}.")
        else:
            values = named.get(prefix + name, tuple(closed_values(section)))
            yield from ((prefix + name, value) for value in values if value != field.default)


def closed_values(annotation: Any) -> Iterator[Any]:
    """Yield the values of a type that has few."""
    if annotation is bool:
        yield from (False, True)
    elif get_origin(annotation) is Literal:
        yield from get_args(annotation)
    elif get_origin(annotation) in (Union, types.UnionType):
        for each in get_args(annotation):
            yield from closed_values(each)


def why_not(model: type[BaseModel], fixed: dict[str, Any], settings: list[Setting]) -> str | None:
    """Return the message by which a config is refused; None for a good one."""
    raw: dict[str, Any] = {**fixed}
    for key, value in settings:
        *sections, last = key.split(".")
        place = raw
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = value
    try:
        build(model, raw)
    except UserError as error:
        return str(error)
    return None
