"""OpenAI's and vLLM's fields that this server refuses, with reasons, because ignoring them would change answers."""

import difflib
from collections.abc import Collection

NO_TOOLS = "this server does not call tools: request JSON with response_format"
TEXT_ONLY = "this server reads and writes text only"
OLDER_NAME = "this is vLLM's older name: use structured_outputs"
ONLY_JSON_OR_REGEX = "structured_outputs supports json, json_object, regex and choice only"

REASONS = {
    "tools": NO_TOOLS,
    "tool_choice": NO_TOOLS,
    "functions": NO_TOOLS,
    "function_call": NO_TOOLS,
    "tool_calls": NO_TOOLS,
    "tool_call_id": NO_TOOLS,
    "audio": TEXT_ONLY,
    "modalities": TEXT_ONLY,
    "images": TEXT_ONLY,
    "store": "this server does not store answers",
    "add_special_tokens": "the tokenizer adds its special tokens: for others, send token ids to /v1/completions",
    "best_of": "request n texts and choose one",
    "extra_body": "this is the OpenAI client's argument: put its fields beside the others",
    "echo": "only /v1/completions repeats the prompt",
    "logit_bias": "this server does not bias tokens: constrain the answer with structured_outputs",
    "prediction": "this server does not use predicted output",
    "prompt_embeds": "send the prompt as text or token ids",
    "reasoning_effort": "this server's models do not write separate reasoning",
    "stop_token_ids": "texts end at EOS: for another end, give strings in stop",
    "suffix": "this server continues texts and does not fill in gaps",
    "use_beam_search": "this server samples tokens one at a time",
    "web_search_options": "this server does not search the web",
    "verbosity": "request short or long answers in the messages",
    "disable_additional_properties": "set additionalProperties in the schema",
    "guided_choice": OLDER_NAME,
    "guided_grammar": OLDER_NAME,
    "guided_json": OLDER_NAME,
    "guided_regex": OLDER_NAME,
    "grammar": ONLY_JSON_OR_REGEX,
    "structural_tag": ONLY_JSON_OR_REGEX,
}


# Fields that differ by more than their spelling: a list of preferences, and one.
SHAPES = {"preference": "`preference` (one preference)", "preferences": "`preferences` (a list)"}


def refusal_reason(field: str, known: Collection[str] = ()) -> str:
    """Return why an unknown field is refused. known: the fields that its place takes."""
    if field in REASONS:
        return "not supported: " + REASONS[field]
    near = difflib.get_close_matches(field, known, n=1, cutoff=0.75)
    if near:
        return f"unknown field. Did you mean {SHAPES.get(near[0], f'`{near[0]}`')}?"
    return "not supported: this server does not know this field: leave it out"
