"""Preferences in every form that a client may send, and the refused ones."""

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pft_core.data.preferences import Axis, Pole, PreferenceSpace
from pft_core.errors import UserError
from pft_core.prompts.conditions import Condition, read_condition
from tests.builders import SPACE

ONE_AXIS = PreferenceSpace("one", SPACE.axes[:1])
SHARED = PreferenceSpace("shared", (SPACE.axes[0], Axis("Money", Pole("Bold"), Pole("Thrifty"))))


@pytest.mark.parametrize("raw", [None, [0.5, 0.5]])
def test_no_preference_states_nothing(raw: Any) -> None:
    assert read_condition(raw, SPACE) == Condition()
    assert read_condition(raw, SPACE).axis is None


@pytest.mark.parametrize(
    ("raw", "stated"),
    [
        ("Bold", ("Risk", 0)),
        ("Careful", ("Risk", 1)),
        ("careFUL", ("Risk", 1)),
        ("slow", ("Pace", 1)),
        ({"pole": "fast"}, ("Pace", 0)),
        ({"axis": None, "pole": "Fast"}, ("Pace", 0)),
        ({"axis": "Pace", "pole": "Slow"}, ("Pace", 1)),
        ({"axis": "Pace", "pole": "second"}, ("Pace", 1)),
    ],
)
def test_a_pole_is_stated_in_any_case(raw: Any, stated: tuple[str, int]) -> None:
    assert read_condition(raw, SPACE) == Condition((stated,))


def test_first_and_second_name_the_poles_of_a_lone_axis() -> None:
    assert read_condition("first", ONE_AXIS) == Condition((("Risk", 0),))
    assert read_condition("second", ONE_AXIS) == Condition((("Risk", 1),))


@pytest.mark.parametrize(
    ("raw", "weight"),
    [
        ({"Bold": 1, "Careful": 3}, 0.25),
        ({"Careful": 3, "Bold": 1}, 0.25),
        ({"bold": 0.2, "CAREFUL": 0.2}, 0.5),
        ({"Bold": 1, "bold": 1, "Careful": 2}, 0.5),
        ({"axis": "Risk", "first": 1, "second": 1}, 0.5),
        ({"Bold": 5e-324, "Careful": 5e-324}, 0.5),
    ],
)
def test_weights_count_by_their_ratio(raw: Any, weight: float) -> None:
    assert read_condition(raw, SPACE) == Condition(slider=("Risk", weight))


@pytest.mark.parametrize(
    ("raw", "weight"),
    [
        ({"Bold": 0.3}, 0.3),
        ({"careful": 0.3}, 0.7),
        ({"axis": "Risk", "second": 0.75}, 0.25),
        ({"Careful": 5e-324}, None),
    ],
)
def test_the_other_pole_gets_the_rest_of_a_lone_weight(raw: Any, weight: float | None) -> None:
    pole = Condition((("Risk", 0),))  # a tiny weight rounds to 0
    assert read_condition(raw, SPACE) == (pole if weight is None else Condition(slider=("Risk", weight)))


@pytest.mark.parametrize("side", [0, 1])
def test_a_weight_that_leaves_nothing_for_the_other_pole_states_the_pole_in_every_spelling(side: int) -> None:
    pole, other = ("Bold", "Careful")[side], ("Careful", "Bold")[side]
    word = ("first", "second")[side]
    spelled: list[Any] = [
        {pole: 1}, {pole: 1.0}, {other: 0}, {other: 0.0}, {pole: 1, other: 0}, {other: 0, pole: 1e-9},
        {pole: 7, other: 0}, {other: 5e-324},
        {"axis": "Risk", word: 1}, {pole.upper(): 1, other: 5e-324}, [1 - side, 0.5], [1.0 - side, 0.5],
        {"axis": "Risk", "pole": word}, {"pole": pole},
    ]  # fmt: skip
    assert {read_condition(raw, SPACE) for raw in spelled} == {read_condition(pole, SPACE)}


@pytest.mark.parametrize("weight", [0.025, 0.3, 0.425, 1e-9, 0.999])
def test_one_weight_is_one_condition_in_every_spelling(weight: float) -> None:
    spelled: list[Any] = [
        {"Bold": weight}, {"Careful": 1 - weight}, [weight, 0.5], {"Bold": weight * 7, "Careful": 7 - weight * 7},
    ]  # fmt: skip
    assert {read_condition(raw, SPACE) for raw in spelled} == {Condition(slider=("Risk", weight))}


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ([1, 0.5], Condition((("Risk", 0),))),
        ([0.5, 0], Condition((("Pace", 1),))),
        ([0, 1.0], Condition((("Risk", 1), ("Pace", 0)))),
        ([0.25, 0.5], Condition(slider=("Risk", 0.25))),
        ([0, 0.75], Condition((("Risk", 1),), ("Pace", 0.75))),
    ],
)
def test_a_vector_has_an_entry_for_each_axis(raw: Any, expected: Condition) -> None:
    assert read_condition(raw, SPACE) == expected


def test_the_end_of_a_slider_states_its_pole_beside_the_other_stated_poles() -> None:
    between = read_condition([0, 0.75], SPACE)
    assert between.axis == "Pace"
    assert between.at_weight(0, SPACE) == read_condition([0, 0], SPACE)
    assert between.at_weight(0.5, SPACE) == Condition((("Risk", 1),), ("Pace", 0.5))


def test_names_of_axes_and_poles_count_in_any_case() -> None:
    assert read_condition({"axis": "risk", "pole": "bold"}, SPACE) == read_condition("Bold", SPACE)
    assert read_condition({"axis": "PACE", "fast": 0.25}, SPACE) == read_condition({"Fast": 0.25}, SPACE)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ("Blod", "no axis has the pole 'Blod'. Did you mean 'Bold'"),
        ("", "pole='': give a name of 1 to 200"),
        ("x" * 201, "give a name of 1 to 200"),
        ("first", "no axis has the pole 'first'"),
        ({}, "name a pole, such as 'Bold'"),
        ({"axis": "Risk"}, "no pole of 'Risk' has a weight above 0"),
        ({"axis": "Rsik", "pole": "Bold"}, "Did you mean 'Risk'"),
        ({"axis": 3, "pole": "Bold"}, "axis=3"),
        ({"axis": "Pace", "pole": "Bold"}, "axis 'Pace' has no pole 'Bold'"),
        ({"pole": None}, "pole=None"),
        ({"pole": ["Bold"]}, "pole="),
        ({"Bold": 1, "Fast": 1}, "axis 'Risk' has no pole 'Fast'"),
        ({"Bold": 0, "Careful": 0}, "no pole of 'Risk' has a weight above 0"),
        ({"Bold": 7}, "Bold=7: the weight of one pole alone must be from 0 to 1; the other pole gets the rest"),
        ({"Bold": 1.0000001}, "Bold=1.0000001: the weight of one pole alone"),
        ({"Bold": 0.7, "bold": 0.7}, "one pole alone must be from 0 to 1"),
        ({"Bold": -1}, "Bold=-1: a weight must be a number from 0 to 1e6"),
        ({"Bold": 1e7}, "Bold=10000000.0"),
        ({"Bold": True}, "Bold=True"),
        ({"Bold": "1"}, "Bold='1'"),
        ({"Bold": float("nan")}, "Bold=nan"),
        ({"Bold": float("inf")}, "Bold=inf"),
        ({"Bold": None}, "Bold=None"),
        ([], "0 numbers, but the space has 2 axes"),
        ([1], r"1 numbers, but the space has 2 axes \(Risk, Pace\)"),
        ([1, 2], "2: entries must be numbers from 0"),
        ([1, "0"], "'0': entries"),
        ([True, 1], "True: entries"),
        ([float("nan"), 1], "nan: entries"),
        ([0.3, 0.7], "between the poles of Risk, Pace: only one axis may be"),
        (0.5, "preference=0.5: give a pole's name"),
        (True, "preference=True"),
    ],
)
def test_a_mistake_is_an_error_with_the_known_names(raw: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_condition(raw, SPACE)


@pytest.mark.parametrize("raw", ["Bold", {}, {"Bold": 1}, {"axis": "Risk", "pole": "Bold"}, [1], []])
def test_a_space_without_axes_takes_no_preference(raw: Any) -> None:
    with pytest.raises(UserError, match="this model has no preference axes"):
        read_condition(raw, PreferenceSpace("none", ()))


def test_a_pole_of_two_axes_needs_its_axis() -> None:
    with pytest.raises(UserError, match=r"'bold' is a pole of 'Risk', 'Money': add 'axis'"):
        read_condition("bold", SHARED)
    assert read_condition({"axis": "Money", "pole": "bold"}, SHARED) == Condition((("Money", 0),))
    assert read_condition({"axis": "Money", "Bold": 1, "Thrifty": 1}, SHARED) == Condition(slider=("Money", 0.5))


WORDS = st.sampled_from(["Bold", "careful", "Fast", "Slow", "axis", "pole", "Risk", "first", "", "\ud800", "\0"])
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | WORDS | st.sampled_from([0, 0.5, 1])
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS | st.text(), inner, max_size=4)
)


def condition_or_error(raw: Any) -> Condition | str:
    try:
        return read_condition(raw, SPACE)
    except UserError as error:
        return str(error)


@given(raw=JSON)
@example(raw={"axis": "Risk", "\ud800": -1})
@example(raw={"Bold": [["x" * 40] * 6] * 6})
def test_any_json_is_a_condition_or_a_short_error(raw: Any) -> None:
    result = condition_or_error(raw)
    if isinstance(result, str):
        assert len(result.encode()) < 400  # encoding fails for a lone surrogate, which could not be sent
        return
    axes = [axis for axis, _ in result.stated] + ([result.slider[0]] if result.slider else [])
    assert len(set(axes)) == len(axes)
    assert set(axes) <= {"Risk", "Pace"}
    assert all(side in (0, 1) for _, side in result.stated)
    assert result.slider is None or 0 < result.slider[1] < 1
