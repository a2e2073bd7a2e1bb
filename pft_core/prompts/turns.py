"""Dialogues in a chat template: each turn before the last is a message of its own, and the last one is the question.

The template is rendered with the dialogue's turns and cut at the question, as `chat_frame` cuts it at a lone message.
In the plain frame, a dialogue is one text with the names of the roles.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

from pft_core.data import PairedExample, Reject, Turn
from pft_core.prompts.chat_template import MESSAGE, render_chat
from pft_core.prompts.rendering import Frame, PromptStyle

REFUSED = "refused_turns"  # the reason of a reject
_REMEDY = "use prompt.template=plain, or write the dialogue as one user message"


def in_turns(
    example_id: str, record: PairedExample, style: PromptStyle, tokenizer: Any
) -> tuple[PairedExample, PromptStyle] | Reject:
    """Return the record with only its last message as scenario, and the style in the frame of the turns before it.

    Both stay as they are in the plain frame, or without turns. Returns a reject if the tokenizer's chat template
    refuses the turns, or does not write them unchanged.
    """
    if not record.turns or style.frame == Frame():
        return record, style
    frame = _frame_around_question(record.turns, tokenizer, str(tokenizer.chat_template))
    if isinstance(frame, str):
        detail = f"the chat template of {tokenizer.name_or_path!r} {frame}: {_REMEDY}"
        return Reject(example_id, "turns", REFUSED, detail)
    return replace(record, scenario=record.turns[-1].content, turns=()), replace(style, frame=frame)


@lru_cache(maxsize=256)
def _frame_around_question(turns: tuple[Turn, ...], tokenizer: Any, template: str) -> Frame | str:
    """Return the text around the last turn, or why the template cannot write these turns.

    template: that of the tokenizer, so that the cache has no outdated frame after a change of it.
    """
    *before, question = turns
    roles = ", ".join(turn.role for turn in turns)
    if question.role != "user":
        return f"cannot ask a dialogue that ends with a turn of {question.role!r} ({roles})"
    try:
        pieces = _rendered([*before, Turn("user", MESSAGE)], tokenizer).split(MESSAGE)
        whole = _rendered(turns, tokenizer)
    except Exception as error:  # a template may raise any error
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        return f"refuses the turns {roles} ({reason})"
    # Templates may leave the reasoning out of an earlier answer, but nothing that asks.
    missing = next((turn.role for turn in before if turn.role != "assistant" and turn.content not in whole), None)
    if missing is not None:
        return f"leaves out a turn of {missing!r} ({roles})"
    if len(pieces) != 2 or question.content.join(pieces) != whole:
        return f"does not write the last of the turns {roles} once and unchanged"
    return Frame(pieces[0], pieces[1], answer_lead="")


def _rendered(turns: Sequence[Turn], tokenizer: Any) -> str:
    return render_chat(tokenizer, [{"role": turn.role, "content": turn.content} for turn in turns])
