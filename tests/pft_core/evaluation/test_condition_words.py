from pft_core.data.preferences import Axis, Pole, PreferenceSpace
from pft_core.data.records import Option, PairedExample
from pft_core.evaluation.yardsticks.condition import condition_words, stems

SPACE = PreferenceSpace(
    "s", (Axis("Time", Pole("Now", "Takes the pleasures today."), Pole("Later", "Waits for a better reward.")),)
)


def test_the_option_with_most_of_the_conditions_words_is_chosen() -> None:
    options = (Option("wait at the reward desk", 1), Option("have pleasures today", 0), Option("the now", 0))
    record = PairedExample("id", "Time", "A scenario.", options)
    # The first pole shares "pleasures" and "today" with option 1, only "now" with option 2; the second "wait" and
    # "reward" with option 0.
    assert condition_words([record], SPACE)[0].chosen == (frozenset({1}), frozenset({0}))


def test_endings_and_common_words_do_not_count() -> None:
    assert stems("The waiting, waits and waited") == {"wait"}
    assert len(stems("Daring, dares, dared and dare")) == 1


def test_of_yes_and_no_the_condition_says_yes_to_a_scenario_with_its_words() -> None:
    options = (Option("No", 0), Option("Yes", 1))
    scenarios = ("I like pleasures today.", "I wait for a reward.", "I like tea.")
    outcomes = condition_words([PairedExample(text, "Time", text, options) for text in scenarios], SPACE)
    first, second, neither = [outcome.chosen for outcome in outcomes]
    assert (first, second) == ((frozenset({1}), frozenset({0})), (frozenset({0}), frozenset({1})))
    # A tie is No under both poles, which is right under one of them.
    assert neither == (frozenset({0}), frozenset({0}))
