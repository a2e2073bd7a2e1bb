"""Values that ask for nothing: a field with one is as good as absent, whichever client sends it."""

from collections.abc import Iterable, Mapping
from typing import Any

# OpenAI's and vLLM's fields with the values that leave an answer as it is.
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "add_special_tokens": (False,),
    "best_of": (1,),
    "detokenize": (True,),
    "echo": (False,),
    "function_call": ("none", "auto"),
    "include_stop_str_in_output": (False,),
    "length_penalty": (1,),
    "modalities": (["text"],),
    "parallel_tool_calls": (True, False),
    "priority": (0,),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "service_tier": ("auto", "default"),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True, False),
    "store": (False,),
    "tool_choice": ("none", "auto"),
    "type": ("text",),  # of a message
    "use_beam_search": (False,),
    "weight": (1,),  # of a message
}


def without_neutral(raw: Mapping[str, Any], known: Iterable[str]) -> dict[str, Any]:
    """Return the fields that ask for something. known: the names of fields that decide on empty values themselves.

    A number that stands for a name we do not know is kept, to be refused: `temprature: 0` asks for something.
    """
    names = set(known)
    return {name: value for name, value in raw.items() if value is not None and not _is_neutral(name, value, names)}


def _is_neutral(name: str, value: Any, known: set[str]) -> bool:
    if name in known:
        return False
    is_listed = any(value == neutral and _is_alike(value, neutral) for neutral in NEUTRAL.get(name, ()))
    return is_listed or value in ([], {}, "")


def _is_alike(value: Any, neutral: Any) -> bool:
    """1 is no True, and 0 no False, though Python finds them equal."""
    return isinstance(value, bool) == isinstance(neutral, bool)
