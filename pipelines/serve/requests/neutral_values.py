"""Values that ask for nothing: a field with one is as good as absent, whichever client sends it."""

from collections.abc import Iterable, Mapping
from typing import Any

Neutral = Mapping[str, tuple[Any, ...]]

# OpenAI's and vLLM's fields with the values that leave an answer as it is, by where they stand.
OF_A_REQUEST: Neutral = {
    "best_of": (1,),
    "detokenize": (True,),
    "echo": (False,),
    "function_call": ("none", "auto"),
    "include_reasoning": (True, False),  # there is none
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
# Templates bring their own special tokens; before a plain prompt stands what the tokenizer puts there.
OF_A_CHAT: Neutral = {**OF_A_REQUEST, "add_special_tokens": (False,)}
OF_A_COMPLETION: Neutral = {**OF_A_REQUEST, "add_special_tokens": (True,)}
OF_A_MESSAGE: Neutral = {"type": ("text",), "weight": (1,)}
OF_STRUCTURED_OUTPUTS: Neutral = {"disable_any_whitespace": (False,), "disable_additional_properties": (False,)}

ASK_THOUGH_EMPTY = ("web_search_options",)


def without_neutral(raw: Mapping[str, Any], known: Iterable[str], neutral: Neutral) -> dict[str, Any]:
    """Return the fields that ask for something. known: the names of fields that decide on empty values themselves.

    A number that stands for a name we do not know is kept, to be refused: `temprature: 0` asks for something.
    """
    names = {*known, *ASK_THOUGH_EMPTY}
    return {
        name: value
        for name, value in raw.items()
        if value is not None and (name in names or not _is_neutral(value, neutral.get(name, ())))
    }


def _is_neutral(value: Any, listed: Iterable[Any]) -> bool:
    return any(value == each and _is_alike(value, each) for each in listed) or value in ([], {}, "")


def _is_alike(value: Any, neutral: Any) -> bool:
    """1 is no True, and 0 no False, though Python finds them equal."""
    return isinstance(value, bool) == isinstance(neutral, bool)
