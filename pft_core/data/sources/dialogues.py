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

# Who asks and who answers in a dialogue that is written as one text.
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


def _either(names: Sequence[tuple[str, str]]) -> list[str]:
    """Return two patterns: who asks, who answers."""
    return ["|".join(side) for side in zip(*names, strict=True)]


# A name and a colon, where a line or what follows a tag begins, or a name as a heading.
_SPOKEN = (
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
_CHATS = [
    re.compile(pattern, re.MULTILINE | re.IGNORECASE)
    for pattern in (_SPOKEN.format(*_either(_SPEAKERS)), *_CONTROL_TOKENS)
]
_LABELLED = [
    re.compile(_SPOKEN.format(*_either(names)), re.MULTILINE | re.IGNORECASE) for names in (_QUESTIONS, _TASKS)
]
# All on one line: a name as it is written first, or in capitals.
_IN_LINE = re.compile(
    r"(?<!\S)(?:{}|{}|(?P<answer>{}|{}))[:\uff1a]".format(
        *(f(side) for side in _either(_SPEAKERS) for f in (str, str.upper))
    )
)
# What may open a turn of somebody who is not known here.
_SOME_TURN = re.compile(
    rf"{_TOKEN}|</s>|^[ \t]*(?:[#*_\[]+[ \t]*)?([^\W\d_]{{2,20}})[\]*_]*[ \t]*[:\uff1a][*_]*", re.MULTILINE
)

_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3000-\u30ff\u31f0-\u31ff\u3400-\u9fff\uf900-\ufaff\uff01-\uff60"
    "\U00020000-\U0003ffff]"
)
_SPELT_MESSAGES = re.compile(r"\s*(?:\[\s*)?\{\s*['\"](role|content|from|value)['\"]\s*:")


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
    RowFault where the two ask different things, or where nobody can tell which of their turns answers.
    """
    length = common_turns(chosen, rejected)
    opened = answer_opened(chosen[:length])
    _refuse_other_question(chosen, rejected, opened, length)
    if opened:
        return opened
    _refuse_unknown_turns(chosen[:length])
    while length and not _may_end(chosen, rejected, length):
        length -= 1
    return length


def _may_end(chosen: str, rejected: str, length: int) -> bool:
    if any(unicodedata.category(text[length]).startswith("M") for text in (chosen, rejected) if length < len(text)):
        return False  # a mark that belongs to the character before
    last = chosen[length - 1]
    return last.isspace() or bool(_UNSPACED.match(last))


def answer_opened(text: str) -> int:
    """Return where the last turn of the answering side begins to speak; 0 where the text shows no turns.

    What a text uses first are its own turns; behind labelled examples ("Input:", "Output:") a chat may follow, which
    counts. Raises RowFault where that chat may be an answer's own.
    """
    chat, labelled = _first_dialogue(_CHATS, text) or _in_one_line(text), _first_dialogue(_LABELLED, text)
    if not chat or not labelled or chat[0].start() < labelled[0].start():
        return _last_opened(chat or labelled)
    between = text[_last_opened(labelled) : chat[0].start()]
    if _last_opened(chat) > _last_opened(labelled) and not between.strip():
        raise RowFault("prompt", "unclear_turns", "a dialogue follows that may be the answer: give `prompt` itself")
    return max(_last_opened(chat), _last_opened(labelled))


_Marks = Sequence[re.Match[str]]


def _first_dialogue(styles: Sequence[re.Pattern[str]], text: str) -> _Marks:
    found = [marks for style in styles if _is_dialogue(marks := list(style.finditer(text)))]
    return min(found, key=lambda marks: marks[0].start(), default=[])


def _in_one_line(text: str) -> _Marks:
    marks = list(_IN_LINE.finditer(text))
    begins = marks and (marks[0][0].isupper() or not text[: marks[0].start()].rpartition("\n")[2].strip())
    return marks if begins and not marks[0]["answer"] and _is_dialogue(marks) else []


def _last_opened(marks: _Marks) -> int:
    return max((mark.end() for mark in marks if mark["answer"]), default=0)


def _is_dialogue(marks: _Marks) -> bool:
    # A lone "A:" may as well be the first of some options.
    first = marks[0]["answer"] if marks else ""
    return any(mark["answer"] for mark in marks) and (first is None or len(first) > 1)


def _refuse_other_question(chosen: str, rejected: str, opened: int, length: int) -> None:
    """Raise RowFault where the two part while somebody still asks, and are answered later."""
    for turn in _CHATS if opened else [*_CHATS, *_LABELLED]:
        asked = any(not mark["answer"] for mark in turn.finditer(chosen, opened, length))
        if asked and all(any(mark["answer"] for mark in turn.finditer(text, length)) for text in (chosen, rejected)):
            raise RowFault("rejected", "questions_differ", "chosen and rejected part before the turn that answers")


def _refuse_unknown_turns(common: str) -> None:
    """Raise RowFault where turns seem to be marked in a way that is not known: the last may be an answer's."""
    marks = list(_SOME_TURN.finditer(common))
    if len({mark[1] for mark in marks}) > 1 or any(mark[1] is None for mark in marks):
        said = marks[-1][0].strip()
        raise RowFault("prompt", "unclear_turns", f"not known whether {said!r} asks or answers: give `prompt` itself")
