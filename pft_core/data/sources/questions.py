"""Columns that may say what is asked: each is used, says it again, or is refused by name.

What may stand beside tells of a row and asks nothing: figures under any name, and texts under names that say so.
"""

import re
from collections.abc import Mapping, Sequence
from datetime import date, time, timedelta
from decimal import Decimal
from typing import Any

from pft_core.data.sources.checks import RowFault, has_content, parts_of, texts_in

PROMPTS = ("prompt", "question", "instruction", "input", "query")
_SYSTEMS = ("system", "system_prompt", "system_message")
# Under these names a figure or a switch may be asked about, or change how it is asked.
_ASKS = {*PROMPTS, *_SYSTEMS, "context", "history", "text", "tools", "functions", "chat_template_kwargs"}
_NAMES_ONLY = re.compile(r"(?:\W|user|human|assistant|system)*", re.IGNORECASE)

# The last word of a column's name says what it holds (`prompt_id`, `source_text`), these aside.
_WHOSE = {"chosen", "rejected", "a", "b", "at", "utc", "name", "names"}
# fmt: off
_LABELS = {
    "id", "ids", "uid", "qid", "uuid", "guid", "key", "index", "idx", "row", "nr", "no", "source", "origin", "dataset",
    "corpus", "subset", "split", "fold", "model", "score", "rating", "rank", "ranking", "label", "tag", "category",
    "categories", "type", "kind", "domain", "language", "lang", "locale", "license", "licence", "url", "uri", "date",
    "time", "timestamp", "created", "updated", "annotator", "worker", "version", "hash", "sha", "status", "difficulty",
    "confidence", "agreement", "margin", "reward", "weight", "winner", "batch", "round",
}
_REMARKS = {
    "meta", "metadata", "feedback", "rationale", "critique", "explanation", "comment", "note", "reason", "annotation",
    "judgement", "judgment", "verdict", "profile",
}
# fmt: on
_REPEATS = {"message", "conversation", "response", "answer", "completion", "output", "generation", "original"}
# Wherever they stand in a name: who judges the answers, and what is never a mark of the row.
_JUDGES = {"judge", "annotator", "labelling", "labeling", "truth"}
_ASKED_FOR = {"target", "image", "images", "video", "videos", "audio", "audios"}

_MOST_WORDS_OF_A_LABEL = 12
_FEWEST_WORDS_NOT_BY_CHANCE = 4
_ANSWERS = {"chosen", "rejected"}  # such as the order in which they were judged
_FIGURES = (bool, int, float, Decimal, date, time, timedelta)

_LONGEST_MARK = 40  # characters before a turn that say whose it is
_NAMES = "user|human|assistant|system|question|q|instruction|input|query|prompt|context"
_TAG = r"(?:<[^<>\s]+>|\[/?\w+\])"
_TURN_BEGINS = re.compile(rf"(?:(?:\A|\n|{_TAG})\W*(?:{_NAMES})\W*[:\uff1a]|{_TAG}(?:{_NAMES})?)\W*\Z", re.IGNORECASE)
_TURN_ENDS = re.compile(rf" ?(?:\n|{_TAG}|\Z)")
_SENTENCE_BEGINS = re.compile(r"(?:\A|[.!?:;\"'\n]) ?\Z")
_SENTENCE_ENDS = re.compile(r"(?<=[.!?])(?!\S)|[.!?;\"'\n]|\Z")
_SENTENCE_END = re.compile(r"[.!?\u3002\uff01\uff1f]\W*\Z")


def asked_in(row: Mapping[str, Any]) -> tuple[str, Any]:
    """Return the column that asks, and its value: `prompt`, or the first of its other names that is there.

    The value is None where no column does. Raises RowFault where two columns ask different things.
    """
    found = [key for key in PROMPTS if has_content(row.get(key))]
    if not found:
        return "prompt", row.get("prompt")
    first = found[0]
    for other in found[1:]:
        if not is_held(row[other], texts_in(row[first])):
            raise RowFault(other, "two_questions", f"the row asks in {first} as well: put all of it in `prompt`")
    return first, row[first]


def with_system(row: Mapping[str, Any], prompt: Any) -> Any:
    """Put a system message of the row's own column before the prompt, unless the prompt says it already.

    Raises RowFault where it begins with another one.
    """
    given = [key for key in _SYSTEMS if has_content(row.get(key))]
    if not given or is_held(row[given[0]], texts_in(prompt)):
        return prompt
    messages = prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]
    if any(isinstance(message, dict) and message.get("role") == "system" for message in messages):
        raise RowFault(given[0], "two_questions", "the prompt begins with another system message: keep one of them")
    return [{"role": "system", "content": row[given[0]]}, *messages]


def refuse_unused(
    row: Mapping[str, Any], asked: Any, answers: Any = None, *, used: Sequence[str], inside: str = ""
) -> None:
    """Raise RowFault for a column that may say more of what is asked than is read.

    asked: text or messages; what says it again may stand beside, and so may answers under the names of answers. used:
    the columns that are read, first the one that asks. inside: the path of the object whose keys these are.
    """
    for key, value in row.items():
        if key in used or not _may_ask(key, value):
            continue
        known = texts_in([asked, answers]) if _last_word(key) in _REPEATS else texts_in(asked)
        if not is_held(value, known):
            remedy = f"put that in `{used[0]}`, or leave the column out"
            raise RowFault(inside + key, "unused_column", f"not read, and may be part of what is asked: {remedy}")


def is_held(value: Any, turns: Sequence[str]) -> bool:
    """Tell whether all that a value says stands in these texts: as one of them, as a turn or, unless it is short, as
    lines or sentences. A word or two may stand there by chance."""
    found = [text for text in texts_in(value) if text.strip()]
    return bool(found) and all(any(_is_part(text, turn) for turn in turns) for text in found)


def is_said_in(messages: Any, text: str) -> bool:
    """Tell whether a text says these messages one after another, and of its own at most who says them."""
    rest = _words(text)
    for said in filter(None, map(_words, texts_in(messages))):
        before, found, rest = rest.partition(said)
        if not found or not _NAMES_ONLY.fullmatch(before):
            return False
    return bool(_NAMES_ONLY.fullmatch(rest))


def _may_ask(key: str, value: Any) -> bool:
    """Tell whether a column may be part of the question, by its name and by the kind of its value."""
    words, last = set(_words_of(key)), _last_word(key)
    if key.lower() in _ASKS or words & _ASKED_FOR:
        return not _is_made_of(value, ())
    if last in _REMARKS or words & _JUDGES:
        return False
    if last in _LABELS:
        return not all(map(_is_label, texts_in(value)))
    said = set(texts_in(value))
    return not (_is_made_of(value, _FIGURES) or (said and said <= _ANSWERS))


def _is_made_of(value: Any, kinds: tuple[type, ...]) -> bool:
    """Tell whether a value is of these kinds or empty, at any depth."""
    if isinstance(value, dict | list | tuple):
        return all(_is_made_of(part, kinds) for part in parts_of(value))
    return value is None or isinstance(value, kinds) or (isinstance(value, str | bytes) and not value.strip())


def _is_label(text: str) -> bool:
    words = text.split()
    return len(words) <= _MOST_WORDS_OF_A_LABEL and "\n" not in text.strip() and not _SENTENCE_END.search(text)


def _words_of(name: str) -> list[str]:
    return [word.lower() for word in re.findall(r"[^\W\d_A-Z]+|[A-Z]+[^\W\d_A-Z]*", name)]


def _last_word(name: str) -> str:
    """Return the word of a column's name that says what it holds, in the singular; nothing where there is none."""
    words = [word for word in _words_of(name) if word not in _WHOSE]
    last = words[-1] if words else ""
    return last if last in _LABELS else last.removesuffix("s")


def _is_part(text: str, turn: str) -> bool:
    """Tell whether a text is another one, or stands in it on its own."""
    said, known = _lines(text), _lines(turn)
    if _words(said) == _words(known):
        return True
    places = [(_TURN_BEGINS, _TURN_ENDS)]
    if len(said.split()) >= _FEWEST_WORDS_NOT_BY_CHANCE:
        places.append((_SENTENCE_BEGINS, _SENTENCE_ENDS))
    at = known.find(said)
    while at >= 0:
        before, end = known[max(0, at - _LONGEST_MARK) : at], at + len(said)
        if any(begins.search(before) and ends.match(known, end) for begins, ends in places):
            return True
        at = known.find(said, at + 1)
    return False


def _words(text: str) -> str:
    return " ".join(text.split())


def _lines(text: str) -> str:
    """Return a text with one space between words, and no empty lines."""
    return "\n".join(filter(None, map(_words, text.splitlines())))
