"""Chat templates as pure functions of their text: rendered at a fixed time and with a fixed random seed.

Templates may read the clock (`strftime_now`) or draw at random (`random`, `lipsum`). Without a fixed time and seed, the
same template would give training, evaluation and serving different prompts, and one command a new policy each day.
"""

import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from pft_core.errors import UserError

MOMENT = datetime(2026, 1, 1)  # the time that every template reads
# A test message: a template that escapes, wraps or splits a text cannot leave this one unchanged.
MESSAGE = "Is 'this' <b>the\n\n\"message\"</b> & {all} of it: 天気 Ä?"
# A far shorter and a far longer message, which expose a template that looks at a text's length or content.
_OTHER_MESSAGES = ("\u9f98", "<think>Hm, " + "yes or no? 0123456789 /think [x]\n" * 1000 + "</think> So, a-b_c.")
# Names that every template may read. Only a loaded tokenizer can tell whether it has these tokens.
SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

Turn = Mapping[str, str]


def template_arguments(at: datetime = MOMENT) -> dict[str, Any]:
    """Return the arguments of a template besides the messages: a clock that stands still."""
    return {"strftime_now": at.strftime}


def render_chat(tokenizer: Any, turns: Sequence[Turn], *, at: datetime = MOMENT) -> str:
    """Render turns (role, content) with a transformers tokenizer's template, up to the start of an answer.

    Raises any error of the template, which is code that the tokenizer brings.
    """
    with _fixed_chance():
        text: str = tokenizer.apply_chat_template(
            list(turns), tokenize=False, add_generation_prompt=True, **template_arguments(at)
        )
    return text


def marks_of_turns(tokenizer: Any) -> str:
    """Return the text that a tokenizer's chat template writes around turns; an empty string if it has no template, or
    if the template refuses every dialogue tried here."""
    user, assistant = {"role": "user", "content": ""}, {"role": "assistant", "content": ""}
    for turns in ([{"role": "system", "content": ""}, user, assistant, user], [user, assistant, user], [user]):
        try:
            return render_chat(tokenizer, turns)
        except Exception:  # a template may raise any error; the next dialogue has fewer roles
            continue
    return ""


def cut_at_message(render: Callable[[Sequence[Turn]], str], *, tokenizer: str) -> tuple[str, str]:
    """Return the text before and after a user's only message. tokenizer: its name, for errors.

    Raises UserError if the template refuses a single message, does not write it exactly once and unchanged, or writes
    text around it that depends on the message.
    """
    frame, *others = (_cut_at(message, render, tokenizer) for message in (MESSAGE, *_OTHER_MESSAGES))
    if any(other != frame for other in others):
        raise _unusable(tokenizer, "writes text around a message that depends on it")
    return frame


def _cut_at(message: str, render: Callable[[Sequence[Turn]], str], tokenizer: str) -> tuple[str, str]:
    try:
        pieces = render([{"role": "user", "content": message}]).split(message)
    except Exception as error:  # a template may raise any error
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise _unusable(tokenizer, f"refuses a user's message alone ({reason})") from None
    if len(pieces) < 2:
        raise _unusable(tokenizer, "does not write a message's text unchanged (it may expect a list of parts)")
    if len(pieces) > 2:
        raise _unusable(tokenizer, f"writes a message {len(pieces) - 1} times, not once")
    return pieces[0], pieces[1]


def _unusable(tokenizer: str, why: str) -> UserError:
    remedy = "use prompt.template=plain, or another chat template"
    return UserError(f"prompt.template=chat: the chat template of {tokenizer!r} {why}: {remedy}")


def render_source(source: str, turns: Sequence[Turn]) -> str:
    """Render a template from its text, without a tokenizer; the names of special tokens stand for the tokens.

    Raises any error of jinja or the template.
    """
    with _fixed_chance():
        rendered: str = (
            _environment()
            .from_string(source)
            .render(
                messages=list(turns),
                add_generation_prompt=True,
                tools=None,
                documents=None,
                **{name: f"<{name}>" for name in SPECIAL_TOKENS},
                **template_arguments(),
            )
        )
    return rendered


@contextmanager
def _fixed_chance() -> Iterator[None]:
    """Make jinja's `random` and `lipsum` draw the same each time, then restore the state of Python's generator."""
    state = random.getstate()
    random.seed(0)
    try:
        yield
    finally:
        random.setstate(state)


def _environment() -> Any:
    """Return a jinja environment set up as in transformers, from which importing it would take seconds."""
    from jinja2 import TemplateError, ext, nodes
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(ext.Extension):
        # The tag marks a reply and renders as its content.
        tags = {"generation"}  # noqa: RUF012 (jinja's own way to declare tags)

        def parse(self, parser: Any) -> list[nodes.Node]:
            next(parser.stream)
            content: list[nodes.Node] = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return content

    def refuse(message: str) -> None:
        raise TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, ext.loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = refuse
    return environment
