"""A chat template as a pure function of its own text: rendered at a fixed moment and by fixed chance.

Templates may ask for the time (`strftime_now`) or draw (`random`, `lipsum`). Rendered anew by every process, the same
template would give training, evaluation and serving other words each, and the same command another policy each day.
"""

import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from pft_core.errors import UserError

MOMENT = datetime(2026, 1, 1)  # what a template is told of the time
# What stands in for a message: a template that escapes, folds or takes apart a text cannot leave it as it is.
MESSAGE = "Is 'this' <b>the\n\n\"message\"</b> & {all} of it: 天気 Ä?"
# Others, far shorter and far longer: a template that looks at the text (how long it is, what it says) shows here.
_OTHER_MESSAGES = ("\u9f98", "<think>Hm, " + "yes or no? 0123456789 /think [x]\n" * 1000 + "</think> So, a-b_c.")
# Names that every template may read: whether a tokenizer has such tokens is known only once it is loaded.
SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

Turn = Mapping[str, str]


def template_arguments(at: datetime = MOMENT) -> dict[str, Any]:
    """Return what is handed to a template beside the messages: a clock that stands still."""
    return {"strftime_now": at.strftime}


def render_chat(tokenizer: Any, turns: Sequence[Turn], *, at: datetime = MOMENT) -> str:
    """Render turns (role, content) with a transformers tokenizer's template, up to where an answer begins.

    Raises whatever the template does: it is code of its own.
    """
    with _fixed_chance():
        text: str = tokenizer.apply_chat_template(
            list(turns), tokenize=False, add_generation_prompt=True, **template_arguments(at)
        )
    return text


def marks_of_turns(tokenizer: Any) -> str:
    """Return what a tokenizer's chat template writes around turns; nothing where it has none, or refuses them."""
    asks, answers = {"role": "user", "content": ""}, {"role": "assistant", "content": ""}
    for turns in ([{"role": "system", "content": ""}, asks, answers, asks], [asks, answers, asks], [asks]):
        try:
            return render_chat(tokenizer, turns)
        except Exception:  # as it likes: the next has fewer roles
            continue
    return ""


def cut_at_message(render: Callable[[Sequence[Turn]], str], *, tokenizer: str) -> tuple[str, str]:
    """Return the text before and after a user's only message. tokenizer: its name, for errors.

    Raises UserError for a template that refuses one message alone, does not write it once and as it is, or writes
    around it what depends on its text.
    """
    frame, *others = (_cut_at(message, render, tokenizer) for message in (MESSAGE, *_OTHER_MESSAGES))
    if any(other != frame for other in others):
        raise _unusable(tokenizer, "writes other words around another message")
    return frame


def _cut_at(message: str, render: Callable[[Sequence[Turn]], str], tokenizer: str) -> tuple[str, str]:
    try:
        pieces = render([{"role": "user", "content": message}]).split(message)
    except Exception as error:  # refuses as it likes
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise _unusable(tokenizer, f"refuses a user's message alone ({reason})") from None
    if len(pieces) < 2:
        raise _unusable(tokenizer, "does not write a message's text as it is (it may want a list of parts)")
    if len(pieces) > 2:
        raise _unusable(tokenizer, f"writes a message {len(pieces) - 1} times, not once")
    return pieces[0], pieces[1]


def _unusable(tokenizer: str, why: str) -> UserError:
    remedy = "use prompt.template=plain, or another chat template"
    return UserError(f"prompt.template=chat: the chat template of {tokenizer!r} {why}: {remedy}")


def render_source(source: str, turns: Sequence[Turn]) -> str:
    """Render a template from its text, without a tokenizer: special tokens are their names. Raises what jinja does."""
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
    """Let jinja's filter `random` and its `lipsum` draw the same each time, and nobody else notice."""
    state = random.getstate()
    random.seed(0)
    try:
        yield
    finally:
        random.setstate(state)


def _environment() -> Any:
    """Return jinja as transformers sets it up for templates; importing it from there would take seconds."""
    from jinja2 import TemplateError, ext, nodes
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(ext.Extension):
        # Marks a reply, and is written as what is inside.
        tags = {"generation"}  # noqa: RUF012 (jinja's own way to say it)

        def parse(self, parser: Any) -> list[nodes.Node]:
            next(parser.stream)
            inside: list[nodes.Node] = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return inside

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
