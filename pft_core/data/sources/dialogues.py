"""Dialogues: messages as text, and where a prompt ends that two answers have in common."""

import itertools
import re
import unicodedata
from collections.abc import Sequence
from typing import Any

from pft_core.data.sources.checks import RowFault, has_content, instance, text, text_of

Message = dict[str, Any]

# Who may not begin an answer: it would be the question, said again or another one.
_ASKING_ROLES = ("user", "human", "system", "developer", "tool", "function")

# Who asks and who answers in a dialogue that is written as one text; what a text uses first are its own.
_SPEAKERS = (
    ("Human|User|System|Prompter|Customer", "Assistant|AI|Bot|Chatbot"),
    ("\u7528\u6237|\u4eba\u7c7b", "\u52a9\u624b"),  # user, human and assistant in Chinese
    ("\u30e6\u30fc\u30b6\u30fc", "\u30a2\u30b7\u30b9\u30bf\u30f3\u30c8"),  # user and assistant in Japanese
    ("Question|Q|\u95ee|\u554f", "Answer|A|\u7b54"),
    ("Instruction|Input|Prompt|Query", "Response|Output|Completion"),
)
_CONTROL_TOKENS = (
    (r"<\|im_start\|>", "\n"),
    (r"<\|start_header_id\|>", r"<\|end_header_id\|>"),
    ("<start_of_turn>", "\n"),
    (r"<\|", r"\|>"),
)
_SPOKEN = r"^[ \t]*(?:[#*\[]+[ \t]*)?(?:{}|(?P<answer>{}))[\]*]*[ \t]*[:\uff1a]"
_TURNS = [
    *(re.compile(_SPOKEN.format(*speakers), re.MULTILINE | re.IGNORECASE) for speakers in _SPEAKERS),
    *(
        re.compile(rf"{before}(?:(?P<answer>assistant|model|bot)|\w+){after}", re.IGNORECASE)
        for before, after in _CONTROL_TOKENS
    ),
    re.compile(r"\[INST\]|(?P<answer>\[/INST\])"),
]

_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3000-\u30ff\u31f0-\u31ff\u3400-\u9fff\uf900-\ufaff\uff01-\uff60"
    "\U00020000-\U0003ffff]"
)
_SPELT_MESSAGES = re.compile(r"\s*\[?\s*\{\s*['\"](role|content|from|value)['\"]\s*:")


def dialogue_text(value: Any, path: str) -> str:
    """Return a text as it is, a single message's content, and several messages with the name of each role."""
    if isinstance(value, str):
        if _SPELT_MESSAGES.match(value):
            raise RowFault(path, "spelt_messages", "a text that spells messages: store them as a list of objects")
        return text(value, path)
    messages = [_message(message, f"{path}[{i}]") for i, message in enumerate(instance(value, list, path))]
    contents = [text_of(message, "content", inside=f"{path}[{i}].") for i, message in enumerate(messages)]
    if len(messages) == 1:
        return contents[0]
    roles = [text_of(message, "role", inside=f"{path}[{i}].") for i, message in enumerate(messages)]
    turns = [f"{role.capitalize()}: {content}" for role, content in zip(roles, contents, strict=True)]
    return text("\n".join(turns), path)


def answer_text(value: Any, path: str) -> str:
    """Return an answer's text: a dialogue begins with a turn of who answers."""
    answer = dialogue_text(value, path)
    if roles_of(value)[:1] and roles_of(value)[0] in _ASKING_ROLES:
        raise RowFault(f"{path}[0].role", "not_an_answer", f"the answer begins with a turn of {roles_of(value)[0]!r}")
    return answer


def _message(value: Any, path: str) -> Message:
    message: Message = instance(value, dict, path)
    for key, held in message.items():
        if key not in ("role", "content") and has_content(held):
            raise RowFault(f"{path}.{key}", "unread_key", f"a message is read by role and content, and {key} says more")
    return message


def roles_of(value: Any) -> list[str]:
    """Return the roles of messages; none for a text."""
    messages = value if isinstance(value, list) else []
    return [str(message.get("role", "")).lower() for message in messages if isinstance(message, dict)]


def common_turns(chosen: Sequence[Any], rejected: Sequence[Any]) -> int:
    """Return with how many equal elements two sequences begin."""
    pairs = zip(chosen, rejected, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def prompt_length(chosen: str, rejected: str) -> int:
    """Return where the prompt ends that two texts have in common.

    At the last turn that opens an answer; else where the last word ends, as what is common may end inside the first
    word of the two answers. A script without white space has no such words: any character may be the last. Raises
    RowFault where the two ask different things.
    """
    length = common_turns(chosen, rejected)
    opened = _answer_opened(chosen[:length])
    if opened:
        return opened
    _refuse_other_question(chosen, rejected, length)
    while length and not _may_end(chosen, rejected, length):
        length -= 1
    return length


def _may_end(chosen: str, rejected: str, length: int) -> bool:
    if any(unicodedata.category(text[length]).startswith("M") for text in (chosen, rejected) if length < len(text)):
        return False  # a mark that belongs to the character before
    last = chosen[length - 1]
    return last.isspace() or bool(_UNSPACED.match(last))


def _answer_opened(common: str) -> int:
    """Return where the last turn of the answering side begins to speak; 0 where the text shows no turns."""
    styles = [marks for turn in _TURNS if _is_dialogue(marks := list(turn.finditer(common)))]
    own = min(styles, key=lambda marks: marks[0].start(), default=[])
    return max((mark.end() for mark in own if mark["answer"]), default=0)


def _is_dialogue(marks: Sequence[re.Match[str]]) -> bool:
    # A lone "A:" may as well be the first of some options.
    first = marks[0]["answer"] if marks else ""
    return any(mark["answer"] for mark in marks) and (first is None or len(first) > 1)


def _refuse_other_question(chosen: str, rejected: str, length: int) -> None:
    """Raise RowFault where the two part while somebody still asks, and are answered later."""
    asked = any(not mark["answer"] for mark in _TURNS[0].finditer(chosen[:length]))
    answered = [any(mark["answer"] for mark in _TURNS[0].finditer(text, length)) for text in (chosen, rejected)]
    if asked and all(answered):
        raise RowFault("rejected", "questions_differ", "chosen and rejected part before the turn that answers")
