"""Parse a reply into a choice, and score a choice.

A reply either holds exactly one object of the grammar below or is *unparsed*: no letter is scraped from prose, and no
code is evaluated. Text may surround the object (a greeting, a code fence), as long as it contains no brace.

    reply  := text object text
    object := "{" pair ("," pair)* [","] "}"
    pair   := scalar ":" value
    value  := scalar | "[" [scalar ("," scalar)* [","]] "]"
    scalar := quoted string | bare word

This is JSON without nesting, but with the liberties that models take: single or typographic quotes, bare words, a
trailing comma. Its quantifiers are possessive, so a hostile reply takes linear time. The choice itself is read
strictly: the key occurs once, with one letter of either case (or a non-empty list of letters), each of an existing
option.
"""

import re
from collections.abc import Sequence

from pft_core.data import LETTERS

_QUOTES = ('""', "''", "\u201c\u201d", "\u2018\u2019")
_STRING = "|".join(rf"{pair[0]}(?:[^{pair[1]}\\]|\\.)*+{pair[1]}" for pair in _QUOTES)
_SCALAR = rf"(?:{_STRING}|[A-Za-z0-9_.+-]++)\s*+"
_SCALARS = rf"{_SCALAR}(?:,\s*+{_SCALAR})*+(?:,\s*+)?"
_VALUE = rf"(?:{_SCALAR}|\[\s*+(?:{_SCALARS})?\]\s*+)"
_PAIR = re.compile(rf"({_SCALAR}):\s*+({_VALUE})", re.DOTALL)
_PAIRS = rf"{_PAIR.pattern}(?:,\s*+{_PAIR.pattern})*+(?:,\s*+)?"
_REPLY = re.compile(rf"[^{{}}]*+\{{\s*+(?P<pairs>{_PAIRS})\}}[^{{}}]*+", re.DOTALL)


def parse_choice(output: str, num_options: int) -> int | None:
    """Read `{"choice": "<letter>"}`; return the option's index, or None if the reply is unparsed."""
    value = _value(output, "choice")
    return None if value is None or value.startswith("[") else _letter(value, num_options)


def parse_choices(output: str, num_options: int) -> frozenset[int] | None:
    """Read `{"choices": ["<letter>", ...]}`; return the set of indices, or None if the reply is unparsed."""
    value = _value(output, "choices")
    if value is None or not value.startswith("["):
        return None
    indices = [_letter(scalar, num_options) for scalar in re.findall(_SCALAR, value[1:-1], re.DOTALL)]
    chosen = frozenset(i for i in indices if i is not None)
    return chosen if indices and None not in indices else None


def parse_option(output: str, options: Sequence[str]) -> int | None:
    """Return the index of the option whose full text equals the reply, ignoring white space; None without a match."""
    texts = [_plain(text) for text in options]
    return texts.index(_plain(output)) if _plain(output) in texts else None


def parse_options(output: str, options: Sequence[str]) -> frozenset[int] | None:
    """Return the options of a reply with one option's full text per line; None if a line is anything else."""
    indices = [parse_option(line, options) for line in output.splitlines() if line.strip()]
    chosen = frozenset(i for i in indices if i is not None)
    return chosen if indices and None not in indices else None


def score_all(choices: frozenset[int] | None, gold: frozenset[int]) -> float:
    """Return the *All* score (PFT): 0 if unparsed or with a wrong option, else the share of gold options chosen."""
    if choices is None or not choices <= gold:
        return 0.0
    return len(choices) / len(gold)


def _value(output: str, key: str) -> str | None:
    reply = _REPLY.fullmatch(output)
    pairs = _PAIR.findall(reply["pairs"]) if reply else []
    values = [value.strip() for name, value in pairs if _unquoted(name) == key]
    return values[0] if len(values) == 1 else None


def _letter(scalar: str, num_options: int) -> int | None:
    letter = _unquoted(scalar).upper()
    index = LETTERS.find(letter) if len(letter) == 1 else -1
    return index if 0 <= index < num_options else None


def _unquoted(scalar: str) -> str:
    text = scalar.strip()
    return text[1:-1].strip() if text[0] + text[-1] in _QUOTES else text


def _plain(text: str) -> str:
    return " ".join(text.split())
