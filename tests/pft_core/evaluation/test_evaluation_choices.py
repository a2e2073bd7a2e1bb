import json
import time

import pytest

from pft_core.evaluation.choices import parse_choice, parse_choices, parse_option, parse_options, score_all
from pft_core.evaluation.metrics.measures import right
from pft_core.evaluation.metrics.outcome import Outcome
from tests.parity import choices as parity

OPTIONS = ["Sell  the boat now.", "Wait for spring.", "Ask a friend."]


@pytest.mark.parametrize(
    "output",
    [
        '{"choice": "B"}',
        "{'choice': 'B', 'reason': 'safer'}",
        '{"choice": B}',
        "{choice: b}",
        '{"choice": " b ", "reason": "safer",}',
        '```json\n{"choice": "B"}\n```',
        'My answer:\n{"choice": "B", "reason": "one\nline, two"}\nBye.',
        '{"reason": "braces {A} and \\"A\\" in a text", "choice": "B"}',
        '{"reason": ["first", "second"], "sure": 0.9, "choice": "B"}',
        "{\u201cchoice\u201d: \u2018B\u2019}",
    ],
)
def test_one_object_with_one_letter_is_parsed(output: str) -> None:
    assert parse_choice(output, 3) == 1


@pytest.mark.parametrize(
    "output",
    [
        "",
        "B",
        "The second one, B.",
        "choice: B",
        "null",
        '["B"]',
        '{"choice": }',
        '{"choice": ""}',
        '{"choice": "AB"}',
        '{"choice": ["B"]}',
        '{"choice": null}',
        '{"answer": "B"}',
        '{"choices": ["B"]}',
        '{"choice": "D"}',  # three options: A, B, C
        '{"choice": "B"',
        '{"choice": "B", "reason": "cut o',
        '{"choice": "B", "reason": unquoted words}',
        '{"choice": "A"} or rather {"choice": "B"}',
        '{"choice": "A", "choice": "B"}',
        '{"choice": {"letter": "B"}}',
        "{'choice': 'B', 'reason': 'it's safer'}",
        '{"choice": \'B"}',
    ],
)
def test_anything_else_is_unparsed(output: str) -> None:
    assert parse_choice(output, 3) is None


@pytest.mark.parametrize(
    ("output", "choices"),
    [
        ('{"choices": ["A", "C"]}', {0, 2}),
        ('{"choices": ["C", "A", "a"]}', {0, 2}),
        ("{'choices': ['B'], 'reason': 'only one'}", {1}),
        ('{"choices": [A, B,]}', {0, 1}),
        ('Here:\n```json\n{"choices": ["A"]}\n```', {0}),
        ('{"choices": []}', None),
        ('{"choices": "A"}', None),
        ('{"choices": "[A]"}', None),
        ('{"choices": ["A", "D"]}', None),  # three options
        ('{"choices": ["AB"]}', None),
        ('{"choices": ["A" "B"]}', None),
        ('{"choices": ["A"', None),
        ('{"choice": "A"}', None),
        ("A, B", None),
    ],
)
def test_a_list_of_letters_is_parsed_as_a_set_or_not_at_all(output: str, choices: set[int] | None) -> None:
    assert parse_choices(output, 3) == choices


@pytest.mark.parametrize(
    "output",
    ["{" * 50_000, '{"choice": ["' + "[" * 50_000, '{"choice": "' + "\\" * 50_000, "{" + '"a": 1, ' * 50_000 + "!}"],
)
def test_a_hostile_reply_takes_linear_time(output: str) -> None:
    started = time.perf_counter()
    assert parse_choice(output, 3) is None
    assert time.perf_counter() - started < 1


def test_code_in_a_reply_is_never_run(tmp_path) -> None:
    trap = tmp_path / "trap"
    assert parse_choice(f"{{\"choice\": open('{trap}', 'w').close() or 'A'}}", 3) is None
    assert not trap.exists()


def test_an_option_is_parsed_by_its_full_text_ignoring_white_space() -> None:
    assert parse_option(" Sell the\nboat  now.\n", OPTIONS) == 0
    assert parse_option("Wait for spring", OPTIONS) is None
    assert parse_option("wait for spring.", OPTIONS) is None
    assert parse_option("", OPTIONS) is None


def test_options_are_parsed_one_per_line() -> None:
    assert parse_options("Ask a friend.\n\n Sell the boat now.", OPTIONS) == {0, 2}
    assert parse_options("Ask a friend. Wait for spring.", OPTIONS) is None
    assert parse_options("Ask a friend.\nI think so.", OPTIONS) is None
    assert parse_options(" \n", OPTIONS) is None


def test_one_is_right_if_the_option_is_gold() -> None:
    chosen = [*(frozenset({option}) for option in (0, 1, 2)), None]
    outcomes = [Outcome("i", "s", "Risk", "one", (0, 1, 0), (choice, None)) for choice in chosen]
    assert [right(outcome, 0) for outcome in outcomes] == [(1, 1), (0, 1), (1, 1), (0, 1)]


def test_all_gives_the_share_of_gold_unless_an_option_is_wrong() -> None:
    gold = frozenset({0, 2, 3})
    assert score_all(frozenset({0, 2, 3}), gold) == 1
    assert score_all(frozenset({2}), gold) == 1 / 3
    assert score_all(frozenset({0, 3}), gold) == 2 / 3
    assert score_all(frozenset({0, 1, 2, 3}), gold) == 0
    assert score_all(None, gold) == 0


CASE = {"labels": ["a", "b", "a"], "target": "a", "choice": "", "choices": [], "well_formed": True}
AGREE = CASE | {"mode": "one", "output": "{'choice': 'C'}", "choice": "C", "score": 1}
AGREE_ALL = CASE | {"mode": "all", "output": '{"choices": [C]}', "choices": ["C"], "score": 0.5}
UNPARSED = CASE | {"mode": "one", "output": "choice: C because", "choice": "C", "score": 1, "well_formed": False}


def run_parity(tmp_path, capsys, *cases):
    path = tmp_path / "cases.json"
    path.write_text(json.dumps(cases))
    code = parity.main(str(path))
    return code, json.loads(capsys.readouterr().out.splitlines()[-1])


def test_parity_counts_every_case_once(tmp_path, capsys) -> None:
    code, counts = run_parity(tmp_path, capsys, AGREE, AGREE_ALL, UNPARSED)
    assert (code, counts) == (0, {"agree": 2, "disagree": 0, "unparsed": 1})


@pytest.mark.parametrize(
    "wrong",
    [
        AGREE | {"choice": "A"},  # another choice with the same score
        AGREE | {"score": 0},
        AGREE_ALL | {"score": 1},
        UNPARSED | {"well_formed": True},
        AGREE | {"well_formed": False},
    ],
)
def test_parity_fails_on_any_disagreement(tmp_path, capsys, wrong) -> None:
    code, counts = run_parity(tmp_path, capsys, AGREE, wrong)
    assert (code, counts) == (1, {"agree": 1, "disagree": 1, "unparsed": 0})
