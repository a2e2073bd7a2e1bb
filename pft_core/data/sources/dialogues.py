"""Dialogues: messages as text, and the end of the prompt that two texts have in common."""

import itertools
import re
import unicodedata
from collections.abc import Sequence
from typing import Any

from pft_core.data.records import Turn
from pft_core.data.sources.checks import RowFault, has_content, instance, text, text_of

Message = dict[str, Any]

# An answer may not begin with a turn of these roles: it would repeat the question or ask another one.
_ASKING_ROLES = ("user", "human", "system", "developer", "tool", "function")

# Names of who asks and who answers, in a dialogue that is written as one text.
_SPEAKERS = (
    ("Human|User|System|Prompter|Customer", "Assistant|AI|Bot|Chatbot|ChatGPT|GPT|Model"),  # English
    ("Usuario|Humano|Utente|Umano|Utilisateur|Humain|Sistema", "Asistente|Assistente"),  # Spanish, Italian, French
    # Portuguese, German, Dutch; Polish, Turkish, Indonesian; Vietnamese; Russian (a user, a human), Ukrainian
    ("Usu\xe1rio|Nutzer|Benutzer|Mensch|Gebruiker", "Assistent"),
    ("U\u017cytkownik|Kullan\u0131c\u0131|Pengguna", "Asystent|Asistan|Asisten"),
    ("Ng\u01b0\u1eddi d\xf9ng", "Tr\u1ee3 l\xfd"),
    (
        "\u041f\u043e\u043b\u044c\u0437\u043e\u0432\u0430\u0442\u0435\u043b\u044c",
        "\u0410\u0441\u0441\u0438\u0441\u0442\u0435\u043d\u0442",
    ),
    (
        "\u0427\u0435\u043b\u043e\u0432\u0435\u043a",
        "\u041f\u043e\u043c\u043e\u0449\u043d\u0438\u043a",
    ),
    (
        "\u041a\u043e\u0440\u0438\u0441\u0442\u0443\u0432\u0430\u0447",
        "\u0410\u0441\u0438\u0441\u0442\u0435\u043d\u0442",
    ),
    ("\u7528\u6237|\u7528\u6236|\u4eba\u7c7b|\u4eba\u985e", "\u52a9\u624b|\u52a9\u7406"),  # Chinese
    ("\u30e6\u30fc\u30b6\u30fc|\u4eba\u9593", "\u30a2\u30b7\u30b9\u30bf\u30f3\u30c8"),  # Japanese
    ("\uc0ac\uc6a9\uc790|\uc720\uc800", "\uc5b4\uc2dc\uc2a4\ud134\ud2b8|\ub3c4\uc6b0\ubbf8|\ube44\uc11c"),  # Korean
    ("\u0627\u0644\u0645\u0633\u062a\u062e\u062f\u0645", "\u0627\u0644\u0645\u0633\u0627\u0639\u062f"),  # Arabic
    ("\u0909\u092a\u092f\u094b\u0917\u0915\u0930\u094d\u0924\u093e", "\u0938\u0939\u093e\u092f\u0915"),  # Hindi
)
_QUESTIONS = (
    ("Question|Q|H|U", "Answer|A"),  # English
    ("Pregunta|Pergunta|Domanda|Frage", "Respuesta|Resposta|Risposta|R\xe9ponse|Antwort"),  # Spanish to German
    ("\u0412\u043e\u043f\u0440\u043e\u0441", "\u041e\u0442\u0432\u0435\u0442"),  # Russian
    ("\u95ee|\u554f|\u95ee\u9898|\u8cea\u554f", "\u7b54|\u56de\u7b54"),  # Chinese, Japanese
    ("\uc9c8\ubb38", "\ub2f5\ubcc0|\ub2f5"),  # Korean
)
_TASKS = (("Instruction|Input|Prompt|Query", "Response|Output|Completion"),)


def _alternatives(names: Sequence[tuple[str, str]]) -> list[str]:
    """Return two patterns, for who asks and for who answers."""
    return ["|".join(side) for side in zip(*names, strict=True)]


# A name and a colon at the start of a line or after a tag, or a name as a heading.
_TURN_LABEL = (
    r"(?:(?:^|(?<=[\w|\uff5c]>))[ \t]*(?:(?P<heading>#{{1,6}})[ \t]*)?|(?<=[^\s#])#{{2,6}}[ \t]*)"
    r"(?:[*_\[(<]{{1,3}}[ \t]*)?(?:{}|(?P<answer>{}))"
    r"(?:[\]*_)>]*[ \t]*[:\uff1a](?:[*_]+(?=\s|\Z))?|(?(heading)[*_]*[ \t]*\n|(?!)))"
)
_TOKEN = r"<[|\uff5c][^<>|\uff5c\n]+[|\uff5c]>"
_CONTROL_TOKENS = (
    rf"(?:{_TOKEN}|<\|?\w+>)(?:(?P<answer>assistant|model|bot)|\w+)(?:\n|{_TOKEN}(?:\w+{_TOKEN})*)",
    r"<[|\uff5c](?:(?P<answer>(?:start_of_|begin_of_)?(?:assistant|model|chatbot|bot|ai|gpt)(?:_start|_begin|_token)?)"
    r"|[^<>|\uff5c\n]+)[|\uff5c]>",
    r"<(?:(?P<answer>assistant|model|bot|ai)|user|human|system)>",
    r"\[\|?(?:(?P<answer>assistant|bot)|user|human|system)\|?\]",
    r"\[INST\]|(?P<answer>\[/INST\])",
)
_CHAT_PATTERNS = [
    re.compile(pattern, re.MULTILINE | re.IGNORECASE)
    for pattern in (_TURN_LABEL.format(*_alternatives(_SPEAKERS)), *_CONTROL_TOKENS)
]
_LABELED_PATTERNS = [
    re.compile(_TURN_LABEL.format(*_alternatives(names)), re.MULTILINE | re.IGNORECASE)
    for names in (_QUESTIONS, _TASKS)
]
# For dialogues on one line: a name as spelled above, or in capitals.
_ONE_LINE_TURN = re.compile(
    r"(?<!\S)(?:{}|{}|(?P<answer>{}|{}))[:\uff1a]".format(
        *(f(side) for side in _alternatives(_SPEAKERS) for f in (str, str.upper))
    )
)
# Marks that may open the turn of an unknown speaker.
_UNKNOWN_TURN = re.compile(
    rf"{_TOKEN}|</s>|^[ \t]*(?:[#*_\[]+[ \t]*)?([^\W\d_]{{2,20}})[\]*_]*[ \t]*[:\uff1a][*_]*", re.MULTILINE
)

_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3000-\u30ff\u31f0-\u31ff\u3400-\u9fff\uf900-\ufaff\uff01-\uff60"
    "\U00020000-\U0003ffff]"
)
_MESSAGES_AS_TEXT = re.compile(r"\s*(?:\[\s*)?\{\s*['\"](role|content|from|value)['\"]\s*:")


def dialogue_text(value: Any, path: str) -> str:
    """Return a text as it is, the content of a single message, or several messages with the name of each role."""
    if isinstance(value, str):
        if _MESSAGES_AS_TEXT.match(value):
            raise RowFault(path, "spelt_messages", "messages written out as text: store them as a list of objects")
        return text(value, path)
    messages = [_message(message, f"{path}[{i}]") for i, message in enumerate(instance(value, list, path))]
    if len(messages) == 1:
        return text_of(messages[0], "content", inside=f"{path}[0].")
    return text(turns_as_text(turns_of(value, path)), path)


def turns_of(value: Any, path: str) -> tuple[Turn, ...]:
    """Return several messages as turns; none for a text or a single message, which is the user's."""
    if isinstance(value, str) or len(instance(value, list, path)) < 2:
        return ()
    contents = [text_of(message, "content", inside=f"{path}[{i}].") for i, message in enumerate(value)]
    roles = [text_of(message, "role", inside=f"{path}[{i}].") for i, message in enumerate(value)]
    return tuple(Turn(role, content) for role, content in zip(roles, contents, strict=True))


def turns_as_text(turns: Sequence[Turn]) -> str:
    """Return turns as one text, each with the name of its role."""
    return "\n".join(f"{turn.role.capitalize()}: {turn.content}" for turn in turns)


def answer_text(value: Any, path: str) -> str:
    """Return the text of an answer. Raises RowFault if it is a dialogue that begins with a turn of who asks."""
    answer = dialogue_text(value, path)
    if roles_of(value)[:1] and roles_of(value)[0] in _ASKING_ROLES:
        raise RowFault(f"{path}[0].role", "not_an_answer", f"the answer begins with a turn of {roles_of(value)[0]!r}")
    return answer


def _message(value: Any, path: str) -> Message:
    message: Message = instance(value, dict, path)
    for key, content in message.items():
        if key not in ("role", "content") and has_content(content):
            raise RowFault(f"{path}.{key}", "unread_key", "only role and content of a message are read: remove the key")
    return message


def roles_of(value: Any) -> list[str]:
    """Return the roles of messages; an empty list for a text."""
    messages = value if isinstance(value, list) else []
    return [str(message.get("role", "")).lower() for message in messages if isinstance(message, dict)]


def num_common(chosen: Sequence[Any], rejected: Sequence[Any]) -> int:
    """Return the number of equal elements at the start of two sequences."""
    pairs = zip(chosen, rejected, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def prompt_length(chosen: str, rejected: str) -> int:
    """Return the length of the prompt that two texts have in common.

    It ends at the last turn that opens an answer. Without turns, it ends at the last whole word, as the common start
    may end inside the first word of the answers; in a script without white space, it may end at any character.
    Raises RowFault if the two texts ask different questions, or if it is unclear which of their turns answers.
    """
    length = num_common(chosen, rejected)
    answer_start = last_answer_start(chosen[:length])
    _refuse_different_questions(chosen, rejected, answer_start, length)
    if answer_start:
        return answer_start
    _refuse_unknown_turns(chosen[:length])
    while length and not _may_end_prompt(chosen, rejected, length):
        length -= 1
    return length


def _may_end_prompt(chosen: str, rejected: str, length: int) -> bool:
    if any(unicodedata.category(text[length]).startswith("M") for text in (chosen, rejected) if length < len(text)):
        return False  # a combining mark belongs to the character before it
    last = chosen[length - 1]
    return last.isspace() or bool(_UNSPACED.match(last))


def last_answer_start(text: str) -> int:
    """Return the index at which the content of the last answering turn begins; 0 if the text has no turns.

    The style of turns that occurs first is the text's own. A chat that follows labeled examples ("Input:", "Output:")
    counts as well. Raises RowFault if that chat may be part of an answer.
    """
    chat = _first_dialogue(_CHAT_PATTERNS, text) or _in_one_line(text)
    labeled = _first_dialogue(_LABELED_PATTERNS, text)
    if not chat or not labeled or chat[0].start() < labeled[0].start():
        return _last_start(chat or labeled)
    between = text[_last_start(labeled) : chat[0].start()]
    if _last_start(chat) > _last_start(labeled) and not between.strip():
        raise RowFault("prompt", "unclear_turns", "the last dialogue may be part of the answer: add a `prompt` column")
    return max(_last_start(chat), _last_start(labeled))


_Marks = Sequence[re.Match[str]]


def _first_dialogue(styles: Sequence[re.Pattern[str]], text: str) -> _Marks:
    dialogues = [marks for style in styles if _is_dialogue(marks := list(style.finditer(text)))]
    return min(dialogues, key=lambda marks: marks[0].start(), default=[])


def _in_one_line(text: str) -> _Marks:
    marks = list(_ONE_LINE_TURN.finditer(text))
    begins = marks and (marks[0][0].isupper() or not text[: marks[0].start()].rpartition("\n")[2].strip())
    return marks if begins and not marks[0]["answer"] and _is_dialogue(marks) else []


def _last_start(marks: _Marks) -> int:
    return max((mark.end() for mark in marks if mark["answer"]), default=0)


def _is_dialogue(marks: _Marks) -> bool:
    # A lone "A:" may just as well be the first of several options.
    first = marks[0]["answer"] if marks else ""
    return any(mark["answer"] for mark in marks) and (first is None or len(first) > 1)


def _refuse_different_questions(chosen: str, rejected: str, answer_start: int, length: int) -> None:
    """Raise RowFault if the two texts already differ inside a question that both answer later."""
    for turn in _CHAT_PATTERNS if answer_start else [*_CHAT_PATTERNS, *_LABELED_PATTERNS]:
        is_asking = any(not mark["answer"] for mark in turn.finditer(chosen, answer_start, length))
        if is_asking and all(any(m["answer"] for m in turn.finditer(text, length)) for text in (chosen, rejected)):
            raise RowFault("rejected", "questions_differ", "chosen and rejected differ before the turn that answers")


def _refuse_unknown_turns(common: str) -> None:
    """Raise RowFault if turns seem to be marked in an unknown way, as the last of them may belong to an answer."""
    marks = list(_UNKNOWN_TURN.finditer(common))
    if len({mark[1] for mark in marks}) > 1 or any(mark[1] is None for mark in marks):
        mark = marks[-1][0].strip()
        raise RowFault("prompt", "unclear_turns", f"unclear whether {mark!r} asks or answers: add a `prompt` column")
