"""Neutral values: a field with one changes nothing, so it is treated as absent, whichever client sends it."""

from collections.abc import Iterable, Mapping
from typing import Any

Neutral = Mapping[str, tuple[Any, ...]]

# OpenAI's and vLLM's fields with the values that do not change an answer, by the object that holds them.
OF_A_REQUEST: Neutral = {
    "best_of": (1,),
    "detokenize": (True,),
    "echo": (False,),
    "function_call": ("none", "auto"),
    "include_reasoning": (True, False),  # there is no reasoning
    "include_stop_str_in_output": (False,),
    "length_penalty": (1,),
    "mm_payload": ("tensors",),
    "modalities": (["text"],),
    "parallel_tool_calls": (True, False),
    "priority": (0,),
    "reasoning_effort": ("none",),
    "return_prompt_text": (False,),
    "return_token_ids": (False,),
    "return_token_offsets": (False,),
    "return_tokens_as_token_ids": (False,),
    "routed_experts_prompt_start": (0,),
    "service_tier": ("auto", "default"),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True, False),
    "store": (False,),
    "stream_interval": (1,),
    "tool_choice": ("none", "auto"),
    "use_beam_search": (False,),
    "verbosity": ("medium",),
}
# Chat templates contain their own special tokens; before a plain prompt, the tokenizer adds them.
OF_A_CHAT: Neutral = {**OF_A_REQUEST, "add_special_tokens": (False,)}
OF_A_COMPLETION: Neutral = {**OF_A_REQUEST, "add_special_tokens": (True,)}
OF_A_MESSAGE: Neutral = {"type": ("text",), "weight": (1,)}
OF_STRUCTURED_OUTPUTS: Neutral = {"disable_any_whitespace": (False,), "disable_additional_properties": (False,)}

MEANINGFUL_IF_EMPTY = ("web_search_options",)


def without_neutral(raw: Mapping[str, Any], known: Iterable[str], neutral: Neutral) -> dict[str, Any]:
    """Return the fields without null and neutral values. known: names of fields that handle empty values themselves.

    An unknown field with a number is kept, so that it is refused: `temprature: 0` was meant to change something.
    """
    names = {*known, *MEANINGFUL_IF_EMPTY}
    return {
        name: value
        for name, value in raw.items()
        if value is not None and (name in names or not _is_neutral(value, neutral.get(name, ())))
    }


def _is_neutral(value: Any, listed: Iterable[Any]) -> bool:
    return any(value == each and _is_alike(value, each) for each in listed) or value in ([], {}, "")


def _is_alike(value: Any, neutral: Any) -> bool:
    """Return whether both or neither are booleans, because Python treats 1 as equal to True."""
    return isinstance(value, bool) == isinstance(neutral, bool)
