"""Rendered prompts and answers, their digest, and the shipped spaces."""

import pytest

from pft_core.data.preferences import load_space
from pft_core.data.records import Option, PairedExample
from pft_core.errors import UserError
from pft_core.prompts.rendering import (
    PromptStyle,
    condition_text,
    render_answer,
    render_prompt,
    target_options,
    template_digest,
)
from tests.builders import SPACE

RECORD = PairedExample("id0", "Risk", "A gap.", (Option("jump", 0), Option("walk round", 1), Option("run", 0)))


def text(position="before", answer="letter", *, side=0, form="one") -> str:
    return render_prompt(RECORD, side=side, form=form, style=PromptStyle(position, answer), space=SPACE).text


def test_the_condition_stands_before_or_after_the_scenario() -> None:
    condition = "Preference (Risk): Bold. Takes chances."
    assert text("before").startswith(condition + "\nA gap.\n(A) jump\n(B) walk round\n(C) run\n")
    after = text("after")
    assert after.startswith("A gap.\n(A) jump")
    assert after.index("(C) run") < after.index(condition) < after.index("Answer:")


def test_without_a_condition_the_prompt_mentions_no_preference() -> None:
    assert "Preference" not in text(side=None)
    assert text(side=None).startswith("A gap.")


def test_both_poles_share_everything_but_the_condition() -> None:
    assert text(side=0).split("\n")[1:] == text(side=1).split("\n")[1:]


def test_the_span_of_the_scenario_is_exact() -> None:
    for position in ("before", "after"):
        prompt = render_prompt(RECORD, side=1, form="one", style=PromptStyle(position), space=SPACE)
        assert prompt.text[slice(*prompt.scenario_span)] == "A gap."


@pytest.mark.parametrize(
    ("form", "answer", "expected"),
    [
        ("one", "letter", ' {"choice": "A"}'),
        ("all", "letter", ' {"choices": ["A", "C"]}'),
        ("one", "option", " jump"),
        ("all", "option", " jump\nrun"),
    ],
)
def test_answers(form, answer, expected) -> None:
    chosen = (0,) if form == "one" else (0, 2)
    assert render_answer(RECORD, chosen, form=form, style=PromptStyle(answer=answer)) == expected


def test_free_responses_list_no_options() -> None:
    record = PairedExample("id1", "Risk", "A gap.", (Option("jump", 0), Option("walk", 1)), "response")
    prompt = render_prompt(record, side=1, form="one", style=PromptStyle(), space=SPACE)
    assert prompt.text == "Preference (Risk): Careful. Avoids chances.\nA gap.\nAnswer:"
    assert render_answer(record, (1,), form="one", style=PromptStyle()) == " walk"


def test_the_demonstration_is_one_option_of_the_pole_and_always_the_same() -> None:
    assert target_options(RECORD, side=0, form="all") == (0, 2)
    (picked,) = target_options(RECORD, side=0, form="one")
    assert picked in (0, 2)
    assert target_options(RECORD, side=0, form="one") == (picked,)


def test_the_template_digest_depends_on_style_and_wording() -> None:
    digests = {
        template_digest(PromptStyle(), SPACE),
        template_digest(PromptStyle("after"), SPACE),
        template_digest(PromptStyle(), load_space("vcd")),
    }
    assert len(digests) == 3


@pytest.mark.parametrize(
    ("position", "side", "token"), [("before", 0, "<Risk: Bold>"), ("after", 1, "<Risk: Careful>")]
)
def test_a_control_token_replaces_the_description(position, side, token) -> None:
    style = PromptStyle(position, condition="control_token")
    prompt = render_prompt(RECORD, side=side, form="one", style=style, space=SPACE).text
    described = condition_text(SPACE, "Risk", side)
    assert prompt == text(position, side=side).replace(described, token)
    assert prompt.count(token) == 1
    assert not any(pole.description in prompt for pole in SPACE.axis("Risk").poles)


def test_without_a_condition_both_styles_give_the_same_prompt_without_a_control_token() -> None:
    style = PromptStyle(condition="control_token")
    assert render_prompt(RECORD, side=None, form="one", style=style, space=SPACE).text == text(side=None)


def test_a_control_token_changes_the_template_digest_and_survives_saving() -> None:
    style = PromptStyle(condition="control_token")
    assert template_digest(style, SPACE) != template_digest(PromptStyle(), SPACE)
    assert PromptStyle.from_dict(style.to_dict()) == style


def test_shipped_spaces_load_and_unknown_names_get_a_suggestion() -> None:
    assert [len(load_space(name).axes) for name in ("vcd", "bqd")] == [6, 7]
    with pytest.raises(UserError, match="Did you mean 'vcd'"):
        load_space("vdc")
    with pytest.raises(UserError, match="Did you mean 'Risk Orientation'"):
        load_space("vcd").axis("Risk orientation")
    with pytest.raises(UserError, match="Did you mean 'Risk-averse'"):
        load_space("vcd").axis("Risk Orientation").side("Risk averse")


def test_a_renderer_with_other_words_has_another_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    before = template_digest(PromptStyle(), SPACE)
    monkeypatch.setattr("pft_core.prompts.rendering.instruction_text", lambda *_: "Answer as you like.")
    assert template_digest(PromptStyle(), SPACE) != before
