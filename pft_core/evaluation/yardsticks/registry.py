"""The yardsticks by the names that suites use; what answers in them is loaded when it is asked."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pft_core.data import Form, PairedExample
from pft_core.evaluation.metrics import Outcome
from pft_core.registry import Registry, load_code, refuse_no_code


@dataclass(frozen=True)
class Yardstick:
    """What answers in a policy's place: its label in a table, what it is, and its code or "package.module:name".

    choose: takes test records and a form, and before them training records where it reads those; returns outcomes.
    """

    label: str
    says: str
    choose: Callable[..., list[Outcome]] | str
    reads_training: bool = False
    is_position: bool = False  # whether it is what every row's position baseline is the value of
    if_unbeaten: str = ""  # what it shows where no method's interval lies above it; empty: nothing is said of it

    def __post_init__(self) -> None:
        refuse_no_code("choose", self.choose)

    def outcomes(self, train: Sequence[PairedExample], test: Sequence[PairedExample], form: Form) -> list[Outcome]:
        """Answer the test records. train: empty where it reads none. Raises UserError as its code does."""
        choose: Callable[..., list[Outcome]] = load_code(self.choose)
        return choose(train, test, form=form) if self.reads_training else choose(test, form)


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
        if_unbeaten="none is shown to have learnt more than the options' words",
    ),
)
