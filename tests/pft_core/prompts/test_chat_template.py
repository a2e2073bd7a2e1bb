"""Chat templates of users: with a clock or random draws, and unusable ones that split, repeat or refuse a message."""

import time
from datetime import datetime
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from pft_core.errors import UserError
from pft_core.policies.pretrained import refuse_unusable_template
from pft_core.prompts.rendering import Frame, PromptStyle, chat_frame, is_frame_of, template_digest
from tests.builders import SPACE

TURNS = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>{% endfor %}<assistant>"
CLOCK = "<system>Today is {{ strftime_now('%d %b %Y %H:%M:%S') }}.</system>" + TURNS
UNUSABLE = {
    "{{ raise_exception('needs a system message') }}": "refuses a user's message alone (needs a system message)",
    "{{ messages[1].content }}": "refuses a user's message alone",
    "{% for m in messages %}{{ m.content": "refuses a user's message alone",
    "{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}": "may expect a list of parts",
    "{% for m in messages %}{{ m.content | tojson }}{% endfor %}": "text unchanged",
    "{% for m in messages %}{{ m.content | replace('\\n', ' ') }}{% endfor %}": "text unchanged",
    "{% for m in messages %}{{ m.content }}|{{ m.content }}{% endfor %}": "writes a message 2 times",
    "{% for m in messages %}{{ m.content[:200] }}{% endfor %}": "text unchanged",
    "{% for m in messages %}{{ m.content | replace('0', 'o') }}{% endfor %}": "text unchanged",
    "{% for m in messages %}{{ m.content.split('</think>')[-1] }}{% endfor %}": "text unchanged",
    "{% for m in messages %}{% if m.content|length > 999 %}Long{% endif %}{{ m.content }}{% endfor %}": "depends on it",
    "{% for m in messages %}{{ m.content }}{% if m.content|length < 9 %}Short{% endif %}{% endfor %}": "depends on it",
}


@pytest.fixture
def templated(tiny_qwen2: Path, tmp_path: Path):
    """Return a function that writes a tokenizer with a template's text and returns its folder."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_qwen2)

    def write(source: str, name: str = "model") -> Path:
        tokenizer.chat_template = source
        tokenizer.save_pretrained(tmp_path / name)
        return tmp_path / name

    return write


@pytest.mark.parametrize("source", [CLOCK, TURNS + "{{ [1, 2, 3, 4, 5, 6, 7] | random }}", TURNS + "{{ lipsum() }}"])
def test_a_template_with_a_clock_or_random_draws_always_gives_the_same_frame(templated, source) -> None:
    tokenizer = AutoTokenizer.from_pretrained(templated(source))
    first = chat_frame(tokenizer)
    time.sleep(1.01)
    assert chat_frame(tokenizer) == first
    assert is_frame_of(first, tokenizer)
    assert template_digest(PromptStyle(frame=first), SPACE) == template_digest(
        PromptStyle(frame=chat_frame(tokenizer)), SPACE
    )


def test_a_frame_that_was_cut_at_another_time_belongs_to_its_template_and_to_no_other(templated) -> None:
    tokenizer = AutoTokenizer.from_pretrained(templated(CLOCK))
    earlier = chat_frame(tokenizer, at=datetime(2025, 7, 8, 9, 10, 11))
    assert "08 Jul 2025 09:10:11" in earlier.opening
    assert is_frame_of(earlier, tokenizer)
    assert not is_frame_of(Frame(earlier.opening.replace("Today", "Now"), earlier.closing, ""), tokenizer)
    assert not is_frame_of(earlier, AutoTokenizer.from_pretrained(templated(TURNS)))
    assert not is_frame_of(earlier, AutoTokenizer.from_pretrained(templated(CLOCK.replace("<assistant>", "<model>"))))


BRANCHING = "{% if strftime_now('%Y')|int >= 2026 %}new{% else %}old{% endif %}" + TURNS


@pytest.mark.parametrize("source", [BRANCHING, "{{ strftime_now('%s') }}" + TURNS])
def test_a_frame_belongs_to_its_template_even_if_the_clock_decides_words(templated, source) -> None:
    tokenizer = AutoTokenizer.from_pretrained(templated(source))
    frames = [chat_frame(tokenizer), chat_frame(tokenizer, at=datetime(2025, 7, 8, 9, 10, 11))]
    assert frames[0] != frames[1]
    assert all(is_frame_of(frame, tokenizer) for frame in frames)
    assert not any(is_frame_of(Frame(frame.opening + "x", frame.closing, ""), tokenizer) for frame in frames)


@pytest.mark.parametrize(("source", "message"), UNUSABLE.items())
def test_an_unusable_template_is_the_same_error_with_and_without_a_tokenizer(templated, source, message) -> None:
    folder = templated(source)
    for check in (
        lambda: refuse_unusable_template(folder, tokenizer=str(folder)),
        lambda: chat_frame(AutoTokenizer.from_pretrained(folder)),
    ):
        with pytest.raises(UserError) as caught:
            check()
        assert str(caught.value).startswith(f"prompt.template=chat: the chat template of {str(folder)!r} ")
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)


def test_every_feature_of_templates_in_transformers_works_without_a_tokenizer(templated) -> None:
    source = (
        "{{ bos_token + '' }}{% for m in messages %}{% if loop.index > 9 %}{% break %}{% endif %}{% generation %}"
        "{{ m.content | trim }}{% endgeneration %}{% endfor %}{{ {'a': 1} | tojson }}{{ strftime_now('%Y') }}"
    )
    refuse_unusable_template(templated(source), tokenizer="own")
    with pytest.raises(UserError, match="has no chat template: use plain"):
        refuse_unusable_template(templated(None, "bare"), tokenizer="bare")
