"""Run configs of a method's stages; each knob of a suite goes only to the stages that take it."""

from collections.abc import Collection, Mapping
from typing import Any

from pft_core.errors import UserError
from pft_core.objectives import KNOBS, OBJECTIVES, ObjectiveSettings
from pipelines.compare.methods import method
from pipelines.config import RunConfig, apply_changes
from pipelines.validated_yaml import build


def stage_configs(
    name: str,
    run: Mapping[str, Any],
    *,
    method_changes: Mapping[str, Any],
    variant_changes: Mapping[str, Any],
    fixed: Mapping[str, Any],
    source: str,
) -> tuple[RunConfig, ...]:
    """Build the run config of each stage: the size's, changed by the stage, the size for this method, and the variant.

    Raises UserError that names source and method.
    """
    place = f"{source}, method {name}"
    raws = [
        apply_changes(run, [stage, method_changes, variant_changes, fixed], source=place)
        for stage in method(name).stages or ({},)
    ]
    return tuple(build(RunConfig, _with_knobs_taken(raw), source=lambda _: f"{place}: ") for raw in raws)


def _with_knobs_taken(raw: dict[str, Any]) -> dict[str, Any]:
    """Drop the knobs that the objective does not take; a suite sets them once for the objectives that do."""
    train = raw.get("train", {})
    objective = train.get("objective", _default("objective")) if isinstance(train, dict) else None
    if not isinstance(objective, str) or objective not in OBJECTIVES:
        return raw
    idle = set(KNOBS) - set(OBJECTIVES[objective].knobs)
    return raw | {"train": {key: value for key, value in train.items() if key not in idle}}


def refuse_idle_knobs(changes: Mapping[str, Any], taken: Collection[str], *, place: str, by: str) -> None:
    """Raise UserError for a knob that nothing takes. changes: sections or dotted keys. by: who could have taken it."""
    train = apply_changes({}, [changes], source=place).get("train")
    values = train if isinstance(train, dict) else {}
    for knob in KNOBS:
        if knob in values and values[knob] != _default(knob) and knob not in taken:
            raise UserError(f"{place}: train.{knob}={values[knob]!r} has no effect: {by} takes it: leave it out")


def _default(key: str) -> Any:
    return ObjectiveSettings.model_fields[key].default
