"""Columns that say what is asked: each is used, or names the fault. What a row asks is never guessed beside them."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pft_core.data.sources.checks import RowFault, has_content, texts_in

PROMPTS = ("prompt", "question", "instruction", "input", "query")
_SYSTEMS = ("system", "system_prompt", "system_message")
_ASKS = {*PROMPTS, *_SYSTEMS, "context", "history", "messages", "conversation", "conversations", "tools"}
_ASKS |= {"document", "documents", "passage", "image", "images", "video", "videos", "audio", "audios"}
_NAMES_ONLY = re.compile(r"(?:\W|user|human|assistant|system)*", re.IGNORECASE)

# Words in the names of columns that tell of a row and ask nothing, such as `prompt_id` or `score_chosen`.
# fmt: off
_TELLS_OF_A_ROW = {
    "id", "ids", "uuid", "key", "index", "source", "sources", "origin", "dataset", "datasets", "subset",
    "split", "model", "models", "score", "scores", "rating", "ratings", "rank", "ranking", "label", "labels",
    "tag", "tags", "category", "categories", "domain", "language", "lang", "license", "licence", "url", "date",
    "time", "timestamp", "created", "annotator", "annotators", "annotation", "worker", "version", "hash",
    "meta", "metadata", "difficulty", "feedback", "rationale", "critique", "explanation", "comment", "comments",
    "note", "notes", "reason", "chosen", "rejected"
}
# fmt: on


def asked_in(row: Mapping[str, Any]) -> tuple[str, Any]:
    """Return the column that asks, and its value: `prompt`, or the first of its other names that is there.

    The value is None where no column does. Raises RowFault where two columns ask different things.
    """
    found = [key for key in PROMPTS if has_content(row.get(key))]
    if not found:
        return "prompt", row.get("prompt")
    first = found[0]
    for other in found[1:]:
        if not is_held(row[other], " ".join(texts_in(row[first]))):
            raise RowFault(other, "two_questions", f"the row asks in {first} as well: put all of it in `prompt`")
    return first, row[first]


def with_system(row: Mapping[str, Any], prompt: Any) -> Any:
    """Put a system message of the row's own column before the prompt. Raises RowFault where there is one already."""
    given = [key for key in _SYSTEMS if has_content(row.get(key))]
    said = _words(" ".join(texts_in(prompt)))
    if not given or (isinstance(row[given[0]], str) and said.startswith(_words(row[given[0]]))):
        return prompt
    messages = prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]
    if any(isinstance(message, dict) and message.get("role") == "system" for message in messages):
        raise RowFault(given[0], "two_questions", "the prompt begins with another system message: keep one of them")
    return [{"role": "system", "content": row[given[0]]}, *messages]


def refuse_unused(row: Mapping[str, Any], scenario: str, *, used: Sequence[str], strict: bool) -> None:
    """Raise RowFault for a column that says more of what is asked than the scenario and the answers do.

    used: columns that are read. strict: the scenario is made of the answers' own words, so that any other text may be
    the question; else only columns of names that stand for it.
    """
    others = {key: value for key, value in row.items() if key not in used}
    asking = [k for k, v in others.items() if (k.lower() in _ASKS and has_content(v)) or (strict and _may_ask(k, v))]
    known = " ".join([scenario, *(found for key in used if asking for found in texts_in(row.get(key)))])
    for key in asking:
        if not is_held(row[key], known):
            raise RowFault(key, "unused_column", "it may be part of what is asked: put all of that in `prompt`")


def is_held(value: Any, known: str) -> bool:
    """Tell whether all that a value says is in a known text, white space and the names of roles aside."""
    found = texts_in(value)
    return bool(found) and all(_words(text) in _words(known) for text in found)


def is_said_in(messages: Any, text: str) -> bool:
    """Tell whether a text says these messages one after another, and of its own at most who says them."""
    rest = _words(text)
    for said in filter(None, map(_words, texts_in(messages))):
        before, found, rest = rest.partition(said)
        if not found or not _NAMES_ONLY.fullmatch(before):
            return False
    return bool(_NAMES_ONLY.fullmatch(rest))


def _may_ask(key: str, value: Any) -> bool:
    if _TELLS_OF_A_ROW & set(re.split(r"[\W_]+", key.lower())):
        return False
    return any(not _is_label(text) for text in texts_in(value))


def _is_label(text: str) -> bool:
    return not text.strip() or (text.isascii() and not re.search(r"\s", text.strip()))


def _words(text: str) -> str:
    return " ".join(text.split())
