"""A preference as a client states it: a pole, both poles with weights, or a vector over the space.

It is parsed once into a `Condition`, the form that all of serving uses.
"""

import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pft_core.data import Axis, PreferenceSpace
from pft_core.errors import UserError, did_you_mean

NEUTRAL = 0.5  # an entry of a vector that means no preference on that axis, as in AlignX's {0, 0.5, 1}
DIGITS = 9  # weights are rounded, so that 0.3 and 1 - 0.7 are the same weight, and a tiny weight is 0
MAX_NAME_LENGTH = 200  # in characters, of a pole or an axis; suggesting a name for a longer text would be slow


@dataclass(frozen=True)
class Condition:
    """The axis and side of every stated pole, and a slider: an axis with the weight of its first pole.

    The weight is strictly between 0 and 1, as at 0 or 1 the pole is stated instead. All other axes have no preference.
    """

    stated: tuple[tuple[str, int], ...] = ()
    slider: tuple[str, float] | None = None

    @property
    def axis(self) -> str | None:
        """The axis of the slider, else that of the first stated pole; None if there is no preference."""
        return self.slider[0] if self.slider else next((axis for axis, _ in self.stated), None)

    def at_weight(self, weight: float, space: PreferenceSpace) -> "Condition":
        """Return the condition with the slider at this weight; at 0 or 1, the pole is stated, in the order of axes."""
        assert self.slider is not None
        if 0 < weight < 1:
            return replace(self, slider=(self.slider[0], weight))
        names = [axis.name for axis in space.axes]
        stated = (*self.stated, (self.slider[0], 1 - int(weight)))
        return Condition(tuple(sorted(stated, key=lambda each: names.index(each[0]))))


def read_condition(raw: Any, space: PreferenceSpace) -> Condition:
    """Parse None, "Pole", {"axis": .., "pole": ..}, {"Pole": weight, "Other pole": weight} (optionally with "axis"),
    or a list with an entry for each axis: 1 first pole, 0 second pole, 0.5 no preference.

    Weights of two poles count by their ratio. If only one pole has a weight, from 0 to 1, the other pole gets the rest.
    Weights are rounded to nine digits; a weight that leaves nothing for the other pole states the pole. Raises
    UserError with the known names.
    """
    if raw is None:
        return Condition()
    if not space.axes:
        raise UserError(f"preference={_shown(raw)}: this model has no preference axes: leave it out")
    if isinstance(raw, str):
        axis = _axis_of([raw], space)
        return Condition(((axis.name, side_of(axis, raw)),))
    if isinstance(raw, Mapping):
        return _from_mapping(raw, space)
    if isinstance(raw, Sequence):
        return _from_vector(raw, space)
    raise UserError(f"preference={_shown(raw)}: give a pole's name, weights of both poles, or a list of numbers")


def _from_mapping(raw: Mapping[str, Any], space: PreferenceSpace) -> Condition:
    rest = {name: value for name, value in raw.items() if name != "axis"}
    by_name = rest.keys() == {"pole"}
    poles = [rest["pole"]] if by_name else list(rest)
    axis = named_axis(raw["axis"], space) if raw.get("axis") is not None else _axis_of(poles, space)
    if by_name:
        return Condition(((axis.name, side_of(axis, poles[0])),))
    by_side: dict[int, float] = {}
    for pole, value in rest.items():
        side = side_of(axis, pole)
        by_side[side] = by_side.get(side, 0.0) + _weight(pole, value)
    return _between(axis, by_side)


def _between(axis: Axis, by_side: Mapping[int, float]) -> Condition:
    """Return the condition for the weights of one side or both."""
    if len(by_side) == 1:
        ((side, alone),) = by_side.items()
        if round(alone, DIGITS) > 1:
            name = axis.poles[side].name
            raise UserError(
                f"preference: {name}={alone:.12g}: the weight of one pole alone must be from 0 to 1; the other pole "
                "gets the rest"
            )
        by_side = {side: alone, 1 - side: 1 - alone}
    if not any(by_side.values()):
        raise UserError(f"preference: no pole of {axis.name!r} has a weight above 0: give one")
    return _condition([(axis.name, by_side[0] / (by_side[0] + by_side[1]))])


def _condition(weights: Iterable[tuple[str, float]]) -> Condition:
    """Return the condition for axes with the weights of their first poles. Raises UserError for two sliders."""
    rounded = [(name, round(weight, DIGITS)) for name, weight in weights]
    between = [(name, weight) for name, weight in rounded if 0 < weight < 1]
    if len(between) > 1:
        names = ", ".join(name for name, _ in between)
        raise UserError(
            f"preference: between the poles of {names}: only one axis may be; give 0, 0.5 or 1 for the others"
        )
    stated = tuple((name, 1 - int(weight)) for name, weight in rounded if weight in (0, 1))
    return Condition(stated, between[0] if between else None)


def _weight(pole: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1e6:
        raise UserError(f"preference: {pole}={_shown(value)}: a weight must be a number from 0 to 1e6")
    return float(value)


def _from_vector(raw: Sequence[Any], space: PreferenceSpace) -> Condition:
    if len(raw) != len(space.axes):
        names = ", ".join(axis.name for axis in space.axes)
        raise UserError(f"preference: {len(raw)} numbers, but the space has {len(space.axes)} axes ({names})")
    for value in raw:
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            shown = _shown(value)
            raise UserError(f"preference: {shown}: entries must be numbers from 0 (second pole) to 1 (first pole)")
    named = zip((axis.name for axis in space.axes), map(float, raw), strict=True)
    return _condition((name, value) for name, value in named if round(value, DIGITS) != NEUTRAL)


def _shown(value: Any) -> str:
    """Return a value in at most 80 characters, as a client may send a long or deeply nested one."""
    text = reprlib.repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _name(what: str, value: Any) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= MAX_NAME_LENGTH:
        raise UserError(f"preference: {what}={_shown(value)}: give a name of 1 to {MAX_NAME_LENGTH} characters")
    return value


def side_of(axis: Axis, pole: str) -> int:
    """Return the side (0 or 1) of a pole's name in any case, or of `first` and `second`. Raises UserError."""
    pole = _name("pole", pole)
    names = [known.name.casefold() for known in axis.poles]
    return names.index(pole.casefold()) if pole.casefold() in names else axis.side(pole)


def named_axis(raw: Any, space: PreferenceSpace) -> Axis:
    """Return the axis of a name in any case; an exact match goes first. Raises UserError."""
    name = _name("axis", raw)
    names = [axis.name for axis in space.axes]
    alike = [known for known in names if known.casefold() == name.casefold()]
    return space.axis(alike[0] if name not in names and len(alike) == 1 else name)


def _axis_of(poles: Sequence[Any], space: PreferenceSpace) -> Axis:
    """Return the only axis that has the first of these poles. Raises UserError if there is none, or several."""
    if not poles:
        raise UserError("preference: name a pole, such as " + repr(space.axes[0].first.name))
    name = _name("pole", poles[0])
    wanted = name.casefold()
    axes = [axis for axis in space.axes if wanted in (pole.name.casefold() for pole in axis.poles)]
    if not axes and wanted in ("first", "second") and len(space.axes) == 1:
        return space.axes[0]
    if not axes:
        known = [pole.name for axis in space.axes for pole in axis.poles]
        raise UserError(f"preference: no axis has the pole {name!r}.{did_you_mean(name, known)}")
    if len(axes) > 1:
        names = ", ".join(repr(axis.name) for axis in axes)
        raise UserError(f"preference: {name!r} is a pole of {names}: add 'axis'")
    return axes[0]
