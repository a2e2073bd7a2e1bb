"""The bodies of requests and responses: OpenAI's fields, and our own beside them.

Unknown fields are refused, because ignoring one would change the answer without the client's knowledge. The docstring
below a field is its description in the OpenAPI document.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from pipelines.serve.engines import Grammar
from pipelines.serve.requests.neutral_values import OF_A_CHAT, OF_A_COMPLETION, OF_A_MESSAGE, Neutral
from pipelines.serve.requests.request_body import Body, RequestBody, at_most
from pipelines.serve.requests.structured_outputs import ResponseFormat, StructuredOutputs

Text = Annotated[str, Field(max_length=200_000)]
ShortText = Annotated[str, Field(max_length=200)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
TokenIds = Annotated[list[TokenId], Field(fail_fast=True, min_length=1, max_length=200_000)]
Many = Field(fail_fast=True, min_length=1, max_length=256)
Penalty = Annotated[float, Field(ge=-2, le=2)]
Weight = Annotated[float, Field(ge=0, le=1e6, strict=True)]


def _without_nulls(raw: Any) -> Any:
    return {name: value for name, value in raw.items() if value is not None} if isinstance(raw, dict) else raw


Preference = (
    ShortText
    | Annotated[dict[ShortText, Weight | ShortText], BeforeValidator(_without_nulls), at_most(8)]
    | Annotated[list[Weight], Field(fail_fast=True, max_length=512)]
)


def _refuse_repeated(options: list[str]) -> list[str]:
    if len(set(options)) < len(options):
        repeated = next(i for i, option in enumerate(options) if option in options[:i])
        first = options.index(options[repeated])
        raise ValueError(f"options {first} and {repeated} (counted from 0) are the same text: give different ones")
    return options


Options = Annotated[
    list[Annotated[Text, Field(min_length=1)]], Field(min_length=2, max_length=10), AfterValidator(_refuse_repeated)
]


class ScenarioRequest(RequestBody):
    """The fields that requests about one scenario share."""

    model: ShortText | None = None
    """The policy's id or name, as `/v1/models` lists it. Default: the server's default policy."""
    scenario: Annotated[Text, Field(min_length=1)]
    """The situation to decide on."""


class PreferenceRequest(RequestBody):
    """The field that states a preference."""

    preference: Preference | None = None
    """The preference to answer under; by default none is stated. One of: a pole's name, such as `"Bold"`; an object
    `{"axis": ..., "pole": ...}`, if several axes have a pole of that name; an object with the weights of both poles,
    such as `{"Bold": 0.7, "Careful": 0.3}`, with an optional `"axis"`; or a list with one number per axis, where 1 is
    the first pole, 0 the second, and 0.5 no preference."""


class ChooseRequest(ScenarioRequest, PreferenceRequest):
    """A scenario with the options to choose from."""

    options: Options
    """The options, in the order in which the prompt shows them."""
    forms: Annotated[list[Literal["one", "all"]], Field(min_length=1, max_length=2)] = Field(default=["one", "all"])
    """The questions to ask: `one` asks for the option that fits best, `all` for the set of options that fit."""


class ScoreRequest(ScenarioRequest):
    """Answers in free text to score under one or more preferences."""

    answers: Annotated[list[Annotated[Text, Field(min_length=1)]], Field(min_length=1, max_length=64)]
    """The answers to score."""
    preferences: Annotated[list[Preference | None], Field(min_length=1, max_length=16)] = Field(default=[None])
    """The preferences to score the answers under, each in the form that `/v1/choose` takes; null states none."""


class CompareRequest(ScenarioRequest):
    """A scenario to answer under both poles of an axis: by a choice if options are given, otherwise in free text."""

    axis: ShortText | None = None
    """The axis whose poles to compare. Default: the policy's first axis."""
    options: Options | None = None
    """The options to choose from. If absent, each side answers in free text."""
    weight: Annotated[float, Field(ge=0, le=1)] | None = None
    """A weight of the first pole, from 0 to 1. If given, the response has a third answer, at this weight between the
    poles."""
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    """The maximum number of tokens in each free-text answer."""


class StreamOptions(RequestBody):
    """Options of a streamed response."""

    include_usage: bool = False
    """Whether to send a last chunk with the token usage."""
    continuous_usage_stats: bool = False
    """Whether every chunk states the usage so far (vLLM's field)."""
    include_obfuscation: bool | None = None
    """Accepted for compatibility; has no effect."""


def _refuse_non_text(kind: Any) -> Any:
    if isinstance(kind, str) and kind != "text":
        raise ValueError(f"{kind[:40]!r} is not supported: this server reads text only")
    return kind


class TextPart(RequestBody):
    """A part of a message's content."""

    type: Annotated[Literal["text"], BeforeValidator(_refuse_non_text)]
    """The kind of content; only text is supported."""
    text: Text
    """The text."""


class Message(RequestBody):
    """One message of a chat."""

    neutral: ClassVar[Neutral] = OF_A_MESSAGE

    role: Literal["system", "developer", "user", "assistant"]
    """The author of the message."""
    content: Text | Annotated[list[TextPart], Field(fail_fast=True, max_length=64)] | None = Field(
        default=None, validate_default=True
    )
    """The text of the message, whole or in parts; null only for the assistant's messages."""
    name: ShortText | None = None
    """Accepted for compatibility; has no effect."""

    @property
    def text(self) -> str:
        content = self.content or ""
        return content if isinstance(content, str) else "".join(part.text for part in content)

    @field_validator("content", mode="after")
    @classmethod
    def _require_content(cls, content: Any, info: ValidationInfo) -> Any:
        if content is None and info.data.get("role") != "assistant":  # an assistant's answer may have been empty
            raise ValueError("Field required")
        return content


class SamplingRequest(PreferenceRequest):
    """The fields that chat completions and plain completions share."""

    model: ShortText | None = None
    """The policy's id or name, as `/v1/models` lists it. Default: the server's default policy."""
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    """The maximum number of tokens to generate. Default: the recipe's `limits.default_max_tokens`."""
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    """The sampling temperature; 0 is greedy. Default: 1."""
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    """Sample among the likeliest tokens whose probabilities add up to this share. Default: 1, all tokens."""
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] | None = None
    """Sample among this many of the likeliest tokens; -1 and 0 mean all."""
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    """Sample among tokens at least this likely, relative to the likeliest one."""
    presence_penalty: Penalty | None = None
    """Subtracted from the logits of all tokens that the answer already contains."""
    frequency_penalty: Penalty | None = None
    """Subtracted from a token's logit for each time that the answer already contains it."""
    repetition_penalty: Annotated[float, Field(ge=0.01, le=10)] | None = (
        None  # below that, logits leave float32's range
    )
    """Weakens tokens that the prompt or the answer already contains; 1 has no effect."""
    min_tokens: Annotated[int, Field(ge=0)] | None = None
    """The minimum number of tokens before the answer may end."""
    ignore_eos: bool | None = None
    """Whether to continue after an end-of-text token."""
    n: Annotated[int, Field(ge=1)] | None = None
    """The number of texts for each prompt. Default: 1."""
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    """The seed of the first text; each further text of a prompt uses the next number."""
    stop: ShortText | Annotated[list[ShortText], Field(fail_fast=True, max_length=64)] | None = None
    """One or more strings that end the text; the text does not include them."""
    stream: bool | None = None
    """Whether to send the text as server-sent events while it is generated."""
    stream_options: StreamOptions | None = None
    """Options of the stream."""
    structured_outputs: StructuredOutputs | None = None
    """A constraint on the answer, in vLLM's form."""
    response_format: ResponseFormat | None = None
    """A constraint on the answer, in OpenAI's form."""
    user: ShortText | None = None
    """Accepted for compatibility; has no effect."""
    safety_identifier: ShortText | None = None
    """Accepted for compatibility; has no effect."""
    prompt_cache_key: ShortText | None = None
    """Accepted for compatibility; has no effect."""

    @property
    def stops(self) -> list[str]:
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return [stop for stop in stops if stop]

    @property
    def choices(self) -> list[str]:
        return (self.structured_outputs and self.structured_outputs.choice) or []

    @property
    def grammar(self) -> Grammar | None:
        """Return the grammar of the answer; None for free text and for choices."""
        constraints = (self.structured_outputs, self.response_format)
        return next((each.grammar for each in constraints if each is not None and each.grammar is not None), None)

    @property
    def _is_penalized(self) -> bool:
        return bool(self.presence_penalty or self.frequency_penalty or (self.repetition_penalty or 1) != 1)

    @model_validator(mode="after")
    def _check_constraints(self) -> "SamplingRequest":
        """Refuse fields that contradict each other."""
        is_formatted = self.response_format is not None and self.response_format.grammar is not None
        if is_formatted and self.structured_outputs is not None:
            raise ValueError("response_format and structured_outputs: use only one of them")
        if self.choices or self.grammar:
            if self.ignore_eos or self.min_tokens:
                raise ValueError(
                    "ignore_eos and min_tokens: cannot be combined with response_format or structured_outputs, "
                    "which define where the answer ends"
                )
            if self.choices and self._is_penalized:
                raise ValueError("penalties: cannot be combined with choices")
        return self


class ChatRequest(SamplingRequest):
    """OpenAI's chat completion request, with `preference` and some of vLLM's fields."""

    neutral: ClassVar[Neutral] = OF_A_CHAT

    messages: Annotated[list[Message], Field(fail_fast=True, min_length=1, max_length=256)]
    """The chat so far. The last message is the user's, unless `continue_final_message` is set; the preference is stated
    in it."""
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    """OpenAI's newer name for `max_tokens`; takes precedence over it."""
    logprobs: bool | None = None
    """Whether to return the log-probability of each token."""
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    """How many of the likeliest tokens to return at each position; requires `logprobs`."""
    metadata: Annotated[dict[ShortText, Annotated[str, Field(max_length=512)]], at_most(16)] | None = None
    """Accepted for compatibility; has no effect."""
    add_generation_prompt: bool | None = None
    """Whether a new answer begins after the messages (vLLM's field); false requires `continue_final_message`."""
    continue_final_message: bool | None = None
    """Whether to continue the last message, which must be the assistant's (vLLM's field). The response does not repeat
    it."""

    @model_validator(mode="after")
    def _check_messages(self) -> "ChatRequest":
        last_roles = [message.role for message in self.messages[-2:]]
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs: requires logprobs=true")
        if self.continue_final_message and self.add_generation_prompt:
            raise ValueError("continue_final_message and add_generation_prompt: use only one of them")
        if self.continue_final_message and last_roles != ["user", "assistant"]:
            raise ValueError("messages: to continue the last one, it must be the assistant's and follow the user's")
        if not self.continue_final_message and self.add_generation_prompt is False:
            raise ValueError("add_generation_prompt: false requires continue_final_message=true")
        if not self.continue_final_message and last_roles[-1] != "user":
            raise ValueError("messages: the last one must be the user's, which the model answers")
        return self


class CompletionRequest(SamplingRequest):
    """OpenAI's completion request, with `preference` and some of vLLM's fields."""

    neutral: ClassVar[Neutral] = OF_A_COMPLETION

    prompt: Text | TokenIds | Annotated[list[Text], Many] | Annotated[list[TokenIds], Many]
    """A prompt or a list of prompts, as text or token ids. Each prompt is continued `n` times."""
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    """The maximum number of tokens to generate; 0 only reads the prompt. Default: the recipe's
    `limits.default_max_tokens`."""
    logprobs: Annotated[int, Field(ge=0, le=20)] | Literal[False] | None = None
    """How many of the likeliest tokens to return at each position, with each token's log-probability."""
    echo: bool | None = None
    """Whether the response repeats the prompt, and with `logprobs` its log-probabilities."""

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts as a list, each a text or token ids."""
        prompt = self.prompt
        if isinstance(prompt, str) or isinstance(prompt[0], int):
            return [prompt]
        return list(prompt)

    @model_validator(mode="after")
    def _check_echo(self) -> "CompletionRequest":
        if self.echo and (self.choices or self.grammar):
            raise ValueError("echo: cannot be combined with structured_outputs or response_format")
        return self


class Usage(Body):
    """The number of tokens that a request used."""

    prompt_tokens: int
    """Tokens read: prompts and scored answers. A prefix that branches share counts once."""
    completion_tokens: int
    """Tokens generated; 0, because choosing and scoring only read."""
    total_tokens: int
    """The sum of both."""


class OptionScore(Body):
    """An option with its score."""

    index: int
    """The option's position in the request, from 0."""
    letter: str
    """The letter that the prompt gives to the option."""
    text: str
    """The option's text."""
    logprob: float | None
    """The log-probability of the answer that names the option; null if probabilities of two poles were mixed."""
    num_tokens: int | None
    """The number of tokens in that answer; null if probabilities of two poles were mixed."""
    probability: float
    """The option's probability among all options."""


class PolicyResponse(Body):
    """The policy that answered, and the preference that it answered under."""

    model: str
    """The id of the policy that answered."""
    adapter: str | None
    """The id of the adapter, `NAME@DIGEST`; null for a model without one."""
    preference: dict[str, float] | None
    """The preference as the server understood it, as an object from each axis to the weight of its first pole; null if
    none was stated."""
    mixing: Literal["adapter", "probabilities", "steering"] | None
    """How a weight between two poles was applied: `adapter` by an interpolated adapter, `probabilities` by mixing the
    options' probabilities under both poles, `steering` by adding a steering vector to the base model. Null if the
    prompt states the preference."""


class ChooseResponse(PolicyResponse):
    """A policy's choice. Probabilities are the softmax, over the options or sets, of the scores that decide."""

    choice: int | None
    """The index of the option that fits best; null if `forms` lacks `one`."""
    letter: str | None
    """The letter of that option."""
    option: str | None
    """The text of that option."""
    options: list[OptionScore] | None
    """All options with their scores, in the request's order; null if `forms` lacks `one`."""
    all: list[int] | None
    """The indices of all options that fit; null if `forms` lacks `all`, or if there are too many options."""
    all_probability: float | None
    """The probability of that set among all sets of options."""
    all_reason: str | None = None
    """The reason if `forms` has `all` but no set was scored."""
    usage: Usage
    """The tokens that the request used."""


class AnswerScore(Body):
    """The score of one answer."""

    logprob: float
    """The log-probability of the answer: the sum over its tokens, including the end-of-text token."""
    num_tokens: int
    """The number of tokens in the sum."""


class PreferenceScores(PolicyResponse):
    """The scores of all answers under one preference."""

    answers: list[AnswerScore]
    """The scores, in the order of the request's answers."""


class ScoreResponse(Body):
    """The scores under each preference."""

    results: list[PreferenceScores]
    """One result for each preference, in the request's order."""
    usage: Usage
    """The tokens that the request used."""


class CompareSide(PolicyResponse):
    """The answer under one pole, or at a weight between both."""

    pole: str
    """The name of the pole, or `between`."""
    weight: float
    """The weight of the first pole: 1 for the first pole, 0 for the second."""
    chosen: ChooseResponse | None
    """The choice; null if the request has no options."""
    text: str | None
    """The answer in free text; null if the request has options."""


class CompareResponse(Body):
    """The answers under both poles of an axis."""

    axis: str
    """The name of the axis."""
    first: CompareSide
    """The answer under the first pole."""
    second: CompareSide
    """The answer under the second pole."""
    between: CompareSide | None
    """The answer at the request's `weight`; null if it has none, and for free text if no adapter lies between the
    poles."""


class HealthResponse(Body):
    """The state of the server."""

    status: Literal["ok", "ready"]
    """`ok` if the HTTP process is alive, `ready` if an engine replica can answer."""


class VersionResponse(Body):
    """The version of the server."""

    version: str
    """The version of the `pft` package."""


class ExampleScenario(Body):
    """A scenario that the page offers."""

    axis: str
    """The axis of the scenario."""
    scenario: str
    """The situation to decide on."""
    options: list[str]
    """The options, in the order of the prompt."""


class ExamplesResponse(Body):
    """The scenarios that the page offers."""

    examples: list[ExampleScenario]
    """The scenarios; empty if the recipe sets no `examples`."""


class ModelCard(Body):
    """A served policy: OpenAI's model object with fields that identify the policy."""

    id: str
    """The id to use as `model` in requests: `NAME@DIGEST`, or a name without digest if the adapter's weights have not
    been read yet."""
    object: Literal["model"]
    """Always `model`."""
    created: int
    """Always 0."""
    owned_by: str
    """Always `pft`."""
    base: str
    """The base model: a folder or a name on the Hub."""
    adapter: str | None
    """The id of the adapter; null for a model without one."""
    adapter_sha256: str | None
    """The SHA-256 of the adapter's weights, as reports state it; null if they have not been read yet."""
    template_digest: str
    """The digest of the prompt template."""
    config_digest: str
    """The digest of the training config."""
    data_digest: str
    """The digest of the training data."""
    trained_sides: list[int]
    """The sides that the policy was trained on: 0 for first poles, 1 for second poles."""


class PolicyCard(ModelCard):
    """A served policy with its prompt style and preference space."""

    style: dict[str, Any]
    """The prompt style: how a scenario, options and a preference become a prompt."""
    space: dict[str, Any]
    """The preference space: the axes with their poles and descriptions."""


class ModelList(Body):
    """The served policies."""

    object: Literal["list"]
    """Always `list`."""
    data: list[ModelCard]
    """The policies, the default one first."""


class ErrorDetail(Body):
    """An error."""

    message: str
    """An explanation of the error and how to fix it."""
    type: str
    """The class of the error, such as `invalid_request_error`, `rate_limit_error` or `server_error`."""
    param: str | None = None
    """The field that caused the error, if a single one did."""
    code: str | None = None
    """A code for programs, such as `model_not_found` or `context_length_exceeded`."""


class ErrorResponse(Body):
    """An error, in OpenAI's form."""

    error: ErrorDetail
    """The error."""
