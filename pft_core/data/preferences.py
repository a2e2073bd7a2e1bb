"""Axes of preference and the wording of their poles; no other module words a preference.

An *axis* is a value conflict with two *poles*; side 0 is the first pole, side 1 the second.
The YAML files in `spaces/` hold the wording of shipped axes. A data set carries the space that it was prepared with.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from importlib import resources
from typing import Any

import yaml

from pft_core.errors import UserError, did_you_mean

SIDES = (0, 1)  # of a pair: the first pole's and the second pole's


@dataclass(frozen=True)
class Pole:
    """One end of an axis: its name, and a sentence that describes how someone with this preference acts."""

    name: str
    description: str = ""


@dataclass(frozen=True)
class Axis:
    """A value conflict between two poles.

    An axis without a second pole is for evaluation only: an option either shows the first pole (side 0) or does not
    (side 1). No prompt states its pole, which the scenario shows in another way, such as by an earlier choice.
    """

    name: str
    first: Pole
    second: Pole | None

    @property
    def poles(self) -> tuple[Pole, ...]:
        """Both poles, in the order of their sides, or the only one."""
        return (self.first,) if self.second is None else (self.first, self.second)

    def side(self, pole: str) -> int:
        """Return the side (0 or 1) of a pole's name, or of the words `first` and `second`. Raises UserError."""
        names = tuple(pole.name for pole in self.poles)
        for candidates in (names, ("first", "second")[: len(names)]):
            if pole in candidates:
                return candidates.index(pole)
        raise UserError(f"axis {self.name!r} has no pole {pole!r}.{did_you_mean(pole, names)}")


@dataclass(frozen=True)
class PreferenceSpace:
    """A named, ordered set of axes; the entries of preference vectors follow this order."""

    name: str
    axes: tuple[Axis, ...]

    def axis(self, name: str) -> Axis:
        """Return the axis of that name. Raises UserError with the closest known name if there is none."""
        for axis in self.axes:
            if axis.name == name:
                return axis
        raise UserError(f"space {self.name!r} has no axis {name!r}.{did_you_mean(name, [a.name for a in self.axes])}")

    @property
    def one_pole_axes(self) -> tuple[str, ...]:
        """The names of the axes without a second pole."""
        return tuple(axis.name for axis in self.axes if axis.second is None)

    def restricted_to(self, names: Iterable[str]) -> "PreferenceSpace":
        """Return the space with only the named axes, in this space's order."""
        wanted = set(names)
        return PreferenceSpace(self.name, tuple(a for a in self.axes if a.name in wanted))

    def to_dict(self) -> dict[str, Any]:
        """Return the space as JSON-like content."""
        return asdict(self)

    @staticmethod
    def from_dict(raw: dict[str, Any]) -> "PreferenceSpace":
        """Build a space from the content that `to_dict` returns."""
        axes = (Axis(a["name"], Pole(**a["first"]), a["second"] and Pole(**a["second"])) for a in raw["axes"])
        return PreferenceSpace(raw["name"], tuple(axes))


def load_space(name: str) -> PreferenceSpace:
    """Read a shipped space, such as `vcd` or `persona`. Raises UserError for an unknown name."""
    folder = resources.files("pft_core.data") / "spaces"
    path = folder / f"{name}.yaml"
    if not path.is_file():
        known = [entry.name.removesuffix(".yaml") for entry in folder.iterdir()]
        raise UserError(f"no preference space {name!r}.{did_you_mean(name, known)}")
    return PreferenceSpace.from_dict({"name": name, **yaml.safe_load(path.read_text(encoding="utf-8"))})


def worded_as(trained: PreferenceSpace, data: PreferenceSpace) -> PreferenceSpace:
    """Return the axes of the data, with the wording of the training data for those that the policy knows.

    Raises UserError if an axis has other poles than in training, as its sides would mean something else.
    """
    known = {axis.name: axis for axis in trained.axes}
    for axis in data.axes:
        names, trained_names = ([pole.name for pole in a.poles] for a in (axis, known.get(axis.name, axis)))
        if names != trained_names:
            raise UserError(
                f"axis {axis.name!r} has the poles {names} in the data, {trained_names} in the model: "
                "prepare the data again with the poles of the model"
            )
    return replace(data, axes=tuple(known.get(axis.name, axis) for axis in data.axes))
