"""Registry of yardsticks by the names that suites use; their code is loaded on first use."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pft_core.data import Form, PairedExample, PreferenceSpace
from pft_core.evaluation.metrics import Outcome
from pft_core.registry import Registry, load_code, refuse_no_code


@dataclass(frozen=True)
class Yardstick:
    """A reference that answers in a policy's place. label: its name in tables. says: what it does, in a few words.

    choose: takes test records and a form, and returns outcomes; a function or its import path "package.module:name".
    Training records come before the test records if `reads_training`, the space after them if `reads_space`.
    """

    label: str
    says: str
    choose: Callable[..., list[Outcome]] | str
    reads_training: bool = False
    reads_space: bool = False
    is_position: bool = False  # whether it is the position baseline of every row
    if_unbeaten: str = ""  # the conclusion if no method's interval is above its value; empty: none

    def __post_init__(self) -> None:
        refuse_no_code("choose", self.choose)

    def outcomes(
        self, train: Sequence[PairedExample], test: Sequence[PairedExample], form: Form, *, space: PreferenceSpace
    ) -> list[Outcome]:
        """Return the outcomes of the test records. train: may be empty without `reads_training`. Raises UserError if
        its code does."""
        choose: Callable[..., list[Outcome]] = load_code(self.choose)
        before, after = [train] if self.reads_training else [], [space] if self.reads_space else []
        return choose(*before, test, *after, form=form) if before or after else choose(test, form)


# The registered yardsticks, by the name that suites use.
YARDSTICKS: Registry[Yardstick] = Registry("yardstick", Yardstick)

YARDSTICKS.add(
    "position",
    Yardstick(
        "position only",
        "always the first option for the first pole, the second for the second",
        "pft_core.evaluation.yardsticks.position:position_only",
        is_position=True,
    ),
)
YARDSTICKS.add(
    "bag_of_words",
    Yardstick(
        "bag-of-words probe",
        "a linear probe on the words of single options",
        "pft_core.evaluation.yardsticks.words:bag_of_words",
        reads_training=True,
        if_unbeaten="none is shown to have learned more than the options' words",
    ),
)
YARDSTICKS.add(
    "condition_words",
    Yardstick(
        "condition's words",
        "a match of words between the item and the stated preference",
        "pft_core.evaluation.yardsticks.condition:condition_words",
        reads_space=True,
        if_unbeaten="none is shown to do more than match the words of the condition",
    ),
)
