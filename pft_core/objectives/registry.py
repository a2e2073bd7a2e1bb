"""Registry of training objectives by config name. To add one, write a function that builds it and an entry here."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pft_core.registry import Registry, refuse_no_code, refuse_unknown

WEIGHTS = ("alpha", "beta")
# The keys of ObjectiveSettings that only some objectives read.
KNOBS = (*WEIGHTS, "update", "preference_beta", "simpo_gamma", "nll_weight")


@dataclass(frozen=True)
class ObjectiveEntry:
    """The facts about an objective that are known without loading its code.

    build: a function of (ObjectiveSettings, names of the data's axes in order) that returns the Objective, or its
    import path as "package.module:name". knobs: the keys of ObjectiveSettings that it reads. is_searchable: whether
    the ratio of alpha and beta determines it completely, so that `pft tune` can search over it.
    """

    build: str | Callable[..., Any]
    knobs: tuple[str, ...] = ()
    is_searchable: bool = False

    def __post_init__(self) -> None:
        refuse_no_code("build", self.build)
        for knob in self.knobs:
            refuse_unknown(f"knobs={self.knobs!r}: knob", knob, KNOBS)

    @property
    def weights(self) -> tuple[str, ...]:
        """The knobs that are weights of a side."""
        return tuple(knob for knob in WEIGHTS if knob in self.knobs)


# The registered objectives, by the name that `train.objective` takes.
OBJECTIVES: Registry[ObjectiveEntry] = Registry("objective", ObjectiveEntry)

_NLL, _PREFERENCE = "pft_core.objectives.nll", "pft_core.objectives.preference"
_PAIRED, _PREFERRED = (*WEIGHTS, "update"), (*WEIGHTS, "preference_beta")

OBJECTIVES.add("pft", ObjectiveEntry(f"{_NLL}:pft", _PAIRED, is_searchable=True))
OBJECTIVES.add("k_way", ObjectiveEntry(f"{_NLL}:k_way", WEIGHTS, is_searchable=True))
OBJECTIVES.add("one_sided:first", ObjectiveEntry(f"{_NLL}:one_sided_first"))
OBJECTIVES.add("one_sided:second", ObjectiveEntry(f"{_NLL}:one_sided_second"))
OBJECTIVES.add("mixed", ObjectiveEntry(f"{_NLL}:mixed"))
OBJECTIVES.add("dpo", ObjectiveEntry(f"{_PREFERENCE}:dpo", _PREFERRED, is_searchable=True))
OBJECTIVES.add("dpo:first", ObjectiveEntry(f"{_PREFERENCE}:dpo_first", ("alpha", "preference_beta")))
OBJECTIVES.add("dpo:second", ObjectiveEntry(f"{_PREFERENCE}:dpo_second", ("beta", "preference_beta")))
OBJECTIVES.add("dpo_nll", ObjectiveEntry(f"{_PREFERENCE}:dpo_nll", (*_PREFERRED, "nll_weight")))
OBJECTIVES.add("ipo", ObjectiveEntry(f"{_PREFERENCE}:ipo", _PREFERRED, is_searchable=True))
OBJECTIVES.add("simpo", ObjectiveEntry(f"{_PREFERENCE}:simpo", (*_PREFERRED, "simpo_gamma"), is_searchable=True))
