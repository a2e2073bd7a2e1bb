"""Fields of OpenAI's and vLLM's that this server refuses, with reasons: ignored, they would change answers."""

NO_TOOLS = "this server calls no tools: ask for JSON with response_format"
TEXT_ONLY = "this server reads and writes text only"
OLDER_NAME = "vLLM's older name: write structured_outputs"

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
    "store": "nothing is stored here",
    "add_special_tokens": "prompts begin as the tokenizer begins a text: give /v1/completions token ids to differ",
    "best_of": "ask for n texts and choose",
    "echo": "a prompt is told by /v1/completions only",
    "logit_bias": "tokens are not weighted here: allow some with structured_outputs",
    "prediction": "nothing is predicted here",
    "prompt_embeds": "prompts are text or token ids",
    "reasoning_effort": "this server's models write no reasoning apart",
    "stop_token_ids": "texts end at EOS: give texts with stop",
    "suffix": "texts are continued, not filled in",
    "use_beam_search": "tokens are drawn one by one here",
    "web_search_options": "nothing is searched here",
    "verbosity": "ask for short or long answers in the messages",
    "disable_additional_properties": "give the schema additionalProperties instead",
    "guided_choice": OLDER_NAME,
    "guided_grammar": OLDER_NAME,
    "guided_json": OLDER_NAME,
    "guided_regex": OLDER_NAME,
    "grammar": "json, json_object, regex and choice are what structured_outputs takes",
    "structural_tag": "json, json_object, regex and choice are what structured_outputs takes",
}


def why_refused(field: str) -> str:
    """Return why a field is refused that no body has."""
    return "not supported: " + REASONS.get(field, "this server knows no such field, so leave it out")
