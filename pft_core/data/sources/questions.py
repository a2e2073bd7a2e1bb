"""Columns that may be part of a row's question: each is read, repeats the question, or is refused by name.

Other columns may only describe the row: numbers under any name, and texts under names that say so.
"""

import re
from collections.abc import Mapping, Sequence
from datetime import date, time, timedelta
from decimal import Decimal
from typing import Any

from pft_core.data.sources.checks import RowFault, has_content, parts_of, texts_in

PROMPT_COLUMNS = ("prompt", "question", "instruction", "input", "query")
_SYSTEM_COLUMNS = ("system", "system_prompt", "system_message")
# Under these names even a number or a switch may be part of the question, or change how it is asked.
_QUESTION_COLUMNS = {
    *PROMPT_COLUMNS,
    *_SYSTEM_COLUMNS,
    "context",
    "history",
    "text",
    "tools",
    "functions",
    "chat_template_kwargs",
}
_NAMES_ONLY = re.compile(r"(?:\W|user|human|assistant|system)*", re.IGNORECASE)

# The last word of a column's name says what the column holds (`prompt_id`, `source_text`), except for these words.
_SKIPPED_LAST_WORDS = {"chosen", "rejected", "a", "b", "at", "utc", "name", "names"}
# fmt: off
_LABEL_WORDS = {
    "id", "ids", "uid", "qid", "uuid", "guid", "key", "index", "idx", "row", "nr", "no", "source", "origin", "dataset",
    "corpus", "subset", "split", "fold", "model", "score", "rating", "rank", "ranking", "label", "tag", "category",
    "categories", "type", "kind", "domain", "language", "lang", "locale", "license", "licence", "url", "uri", "date",
    "time", "timestamp", "created", "updated", "annotator", "worker", "version", "hash", "sha", "status", "difficulty",
    "confidence", "agreement", "margin", "reward", "weight", "winner", "batch", "round",
}
_REMARK_WORDS = {
    "meta", "metadata", "feedback", "rationale", "critique", "explanation", "comment", "note", "reason", "annotation",
    "judgement", "judgment", "verdict", "profile",
}
# fmt: on
_REPEATING_WORDS = {"message", "conversation", "response", "answer", "completion", "output", "generation", "original"}
# Words that count anywhere in a name: columns of a judge describe the row, targets and media are part of the question.
_JUDGE_WORDS = {"judge", "annotator", "labelling", "labeling", "truth"}
_QUESTION_WORDS = {"target", "image", "images", "video", "videos", "audio", "audios"}

_MOST_WORDS_OF_A_LABEL = 12
_FEWEST_WORDS_NOT_BY_CHANCE = 4
_ANSWER_NAMES = {"chosen", "rejected"}  # as values, such as the order in which a judge saw the answers
_NUMBER_TYPES = (bool, int, float, Decimal, date, time, timedelta)

_MAX_MARK_CHARACTERS = 40  # of the text before a turn that names its speaker
_SPEAKER_NAMES = "user|human|assistant|system|question|q|instruction|input|query|prompt|context"
_TAG = r"(?:<[^<>\s]+>|\[/?\w+\])"
_TURN_BEGINS = re.compile(
    rf"(?:(?:\A|\n|{_TAG})\W*(?:{_SPEAKER_NAMES})\W*[:\uff1a]|{_TAG}(?:{_SPEAKER_NAMES})?)\W*\Z", re.IGNORECASE
)
_TURN_ENDS = re.compile(rf" ?(?:\n|{_TAG}|\Z)")
_SENTENCE_BEGINS = re.compile(r"(?:\A|[.!?:;\"'\n]) ?\Z")
_SENTENCE_ENDS = re.compile(r"(?<=[.!?])(?!\S)|[.!?;\"'\n]|\Z")
_SENTENCE_END = re.compile(r"[.!?\u3002\uff01\uff1f]\W*\Z")


def question_of(row: Mapping[str, Any]) -> tuple[str, Any]:
    """Return the name and the value of the question's column: `prompt`, or the first of its other names in the row.

    The value is None if the row has no such column. Raises RowFault if two columns ask different questions.
    """
    present = [key for key in PROMPT_COLUMNS if has_content(row.get(key))]
    if not present:
        return "prompt", row.get("prompt")
    first = present[0]
    for other in present[1:]:
        if not is_contained(row[other], texts_in(row[first])):
            raise RowFault(other, "two_questions", f"{first} asks something else: put the whole question in `prompt`")
    return first, row[first]


def with_system(row: Mapping[str, Any], prompt: Any) -> Any:
    """Put the system message of the row's own column before the prompt, unless the prompt already contains it.

    Raises RowFault if the prompt begins with another system message.
    """
    present = [key for key in _SYSTEM_COLUMNS if has_content(row.get(key))]
    if not present or is_contained(row[present[0]], texts_in(prompt)):
        return prompt
    messages = prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]
    if any(isinstance(message, dict) and message.get("role") == "system" for message in messages):
        raise RowFault(present[0], "two_questions", "the prompt has another system message: keep one of them")
    return [{"role": "system", "content": row[present[0]]}, *messages]


def refuse_unused(
    row: Mapping[str, Any], question: Any, answers: Any = None, *, used: Sequence[str], inside: str = ""
) -> None:
    """Raise RowFault for a column that is not read, but may be part of the question.

    question: text or messages; other columns may repeat it. answers: columns with names of answers may repeat them.
    used: the columns that are read, the question's first. inside: the path of the object whose keys these are.
    """
    for key, value in row.items():
        if key in used or not _may_ask(key, value):
            continue
        known = texts_in([question, answers]) if _last_word(key) in _REPEATING_WORDS else texts_in(question)
        if not is_contained(value, known):
            remedy = f"move it into `{used[0]}`, or remove the column"
            raise RowFault(inside + key, "unused_column", f"not read, but may be part of the question: {remedy}")


def is_contained(value: Any, turns: Sequence[str]) -> bool:
    """Return whether these texts contain every text of a value: as a whole text, as a turn or, unless it is short, as
    lines or sentences. A word or two may occur there by chance."""
    texts = [text for text in texts_in(value) if text.strip()]
    return bool(texts) and all(any(_is_part(text, turn) for turn in turns) for text in texts)


def is_transcript_of(messages: Any, text: str) -> bool:
    """Return whether a text consists of these messages in order, with at most the names of speakers between them."""
    rest = _words(text)
    for message in filter(None, map(_words, texts_in(messages))):
        before, match, rest = rest.partition(message)
        if not match or not _NAMES_ONLY.fullmatch(before):
            return False
    return bool(_NAMES_ONLY.fullmatch(rest))


def _may_ask(key: str, value: Any) -> bool:
    """Return whether a column may be part of the question, judged by its name and the type of its value."""
    words, last = set(_words_of(key)), _last_word(key)
    if key.lower() in _QUESTION_COLUMNS or words & _QUESTION_WORDS:
        return not _is_made_of(value, ())
    if last in _REMARK_WORDS or words & _JUDGE_WORDS:
        return False
    if last in _LABEL_WORDS:
        return not all(map(_is_label, texts_in(value)))
    texts = set(texts_in(value))
    return not (_is_made_of(value, _NUMBER_TYPES) or (texts and texts <= _ANSWER_NAMES))


def _is_made_of(value: Any, types: tuple[type, ...]) -> bool:
    """Return whether a value is empty or of these types, at any depth."""
    if isinstance(value, dict | list | tuple):
        return all(_is_made_of(part, types) for part in parts_of(value))
    return value is None or isinstance(value, types) or (isinstance(value, str | bytes) and not value.strip())


def _is_label(text: str) -> bool:
    words = text.split()
    return len(words) <= _MOST_WORDS_OF_A_LABEL and "\n" not in text.strip() and not _SENTENCE_END.search(text)


def _words_of(name: str) -> list[str]:
    return [word.lower() for word in re.findall(r"[^\W\d_A-Z]+|[A-Z]+[^\W\d_A-Z]*", name)]


def _last_word(name: str) -> str:
    """Return the word of a column's name that says what it holds, in the singular; an empty string if none does."""
    words = [word for word in _words_of(name) if word not in _SKIPPED_LAST_WORDS]
    last = words[-1] if words else ""
    return last if last in _LABEL_WORDS else last.removesuffix("s")


def _is_part(text: str, turn: str) -> bool:
    """Return whether a text equals another, or is a turn, a line or a sentence of it."""
    part, whole = _lines(text), _lines(turn)
    if _words(part) == _words(whole):
        return True
    borders = [(_TURN_BEGINS, _TURN_ENDS)]
    if len(part.split()) >= _FEWEST_WORDS_NOT_BY_CHANCE:
        borders.append((_SENTENCE_BEGINS, _SENTENCE_ENDS))
    at = whole.find(part)
    while at >= 0:
        before, end = whole[max(0, at - _MAX_MARK_CHARACTERS) : at], at + len(part)
        if any(begins.search(before) and ends.match(whole, end) for begins, ends in borders):
            return True
        at = whole.find(part, at + 1)
    return False


def _words(text: str) -> str:
    return " ".join(text.split())


def _lines(text: str) -> str:
    """Return a text with one space between words and without empty lines."""
    return "\n".join(filter(None, map(_words, text.splitlines())))
