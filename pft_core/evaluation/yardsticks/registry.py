"""Registry of yardsticks by the names that suites use; their code is loaded on first use."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pft_core.data import Form, PairedExample
from pft_core.evaluation.metrics import Outcome
from pft_core.registry import Registry, load_code, refuse_no_code


@dataclass(frozen=True)
class Yardstick:
    """A reference that answers in a policy's place. label: its name in tables. says: what it does, in a few words.

    choose: takes test records and a form, preceded by training records if `reads_training`, and returns outcomes; a
    function or its import path "package.module:name".
    """

    label: str
    says: str
    choose: Callable[..., list[Outcome]] | str
    reads_training: bool = False
    is_position: bool = False  # whether it is the position baseline of every row
    if_unbeaten: str = ""  # the conclusion if no method's interval is above its value; empty: none

    def __post_init__(self) -> None:
        refuse_no_code("choose", self.choose)

    def outcomes(self, train: Sequence[PairedExample], test: Sequence[PairedExample], form: Form) -> list[Outcome]:
        """Return the outcomes of the test records. train: may be empty without `reads_training`. Raises UserError if
        its code does."""
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
        if_unbeaten="none is shown to have learned more than the options' words",
    ),
)
