"""What a client may say, and what it is told: OpenAI's fields, and ours beside them.

A field that is not here is refused, as one that is ignored would change the answer behind the client's back.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator

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


# A pole ("axis" and "pole" where several axes have one of that name); both poles with weights (and "axis", where their
# names do not say it); or a number for each axis of the space.
Preference = (
    ShortText
    | Annotated[dict[ShortText, Weight | ShortText], BeforeValidator(_without_nulls), at_most(8)]
    | Annotated[list[Weight], Field(fail_fast=True, max_length=512)]
)


class ScenarioRequest(RequestBody):
    """What all of our own routes ask about."""

    model: ShortText | None = None
    scenario: Annotated[Text, Field(min_length=1)]
    preference: Preference | None = None


class ChooseRequest(ScenarioRequest):
    """A scenario with its options in the order in which they are shown."""

    options: Annotated[list[Annotated[Text, Field(min_length=1)]], Field(min_length=2, max_length=10)]
    forms: Annotated[list[Literal["one", "all"]], Field(min_length=1, max_length=2)] = Field(default=["one", "all"])


class ScoreRequest(RequestBody):
    """Free answers to a scenario under each of several preferences."""

    model: ShortText | None = None
    scenario: Annotated[Text, Field(min_length=1)]
    answers: Annotated[list[Annotated[Text, Field(min_length=1)]], Field(min_length=1, max_length=64)]
    preferences: Annotated[list[Preference | None], Field(min_length=1, max_length=16)] = Field(default=[None])


class CompareRequest(RequestBody):
    """A scenario under both poles of an axis; without options, `max_tokens` of free text are written instead."""

    model: ShortText | None = None
    scenario: Annotated[Text, Field(min_length=1)]
    axis: ShortText | None = None
    options: Annotated[list[Annotated[Text, Field(min_length=1)]], Field(min_length=2, max_length=10)] | None = None
    weight: Annotated[float, Field(ge=0, le=1)] | None = None  # of the first pole: what lies between is told too
    max_tokens: Annotated[int, Field(ge=1)] | None = None


class StreamOptions(RequestBody):
    """continuous_usage_stats: vLLM's, the usage so far with every chunk."""

    include_usage: bool = False
    continuous_usage_stats: bool = False
    include_obfuscation: bool | None = None


def _read_text_only(kind: Any) -> Any:
    if isinstance(kind, str) and kind != "text":
        raise ValueError(f"{kind[:40]!r} is not supported: this server reads text only")
    return kind


class TextPart(RequestBody):
    type: Annotated[Literal["text"], BeforeValidator(_read_text_only)]
    text: Text


class Message(RequestBody):
    neutral: ClassVar[Neutral] = OF_A_MESSAGE

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[TextPart], Field(fail_fast=True, max_length=64)] | None = Field(
        default=None, validate_default=True
    )
    name: ShortText | None = None

    @property
    def text(self) -> str:
        content = self.content or ""
        return content if isinstance(content, str) else "".join(part.text for part in content)

    @field_validator("content", mode="after")
    @classmethod
    def _is_there(cls, content: Any, found: ValidationInfo) -> Any:
        if content is None and found.data.get("role") != "assistant":  # whose answer may have been empty
            raise ValueError("Field required")
        return content


class SamplingRequest(RequestBody):
    """What chat and plain completions share."""

    model: ShortText | None = None
    preference: Preference | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] | None = None  # -1 and 0: all
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=10)] | None = None  # what is less leaves float32's range
    min_tokens: Annotated[int, Field(ge=0)] | None = None
    ignore_eos: bool | None = None
    n: Annotated[int, Field(ge=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: ShortText | Annotated[list[ShortText], Field(fail_fast=True, max_length=64)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    structured_outputs: StructuredOutputs | None = None  # vLLM's name
    response_format: ResponseFormat | None = None
    # Accepted, and used for nothing.
    user: ShortText | None = None
    safety_identifier: ShortText | None = None
    prompt_cache_key: ShortText | None = None

    @property
    def stops(self) -> list[str]:
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return [stop for stop in stops if stop]

    @property
    def choices(self) -> list[str]:
        return (self.structured_outputs and self.structured_outputs.choice) or []

    @property
    def grammar(self) -> Grammar | None:
        """Return what the answer is written in; None for free text, and for choices."""
        asked = (self.structured_outputs, self.response_format)
        return next((each.grammar for each in asked if each is not None and each.grammar is not None), None)

    @property
    def _is_penalised(self) -> bool:
        return bool(self.presence_penalty or self.frequency_penalty or (self.repetition_penalty or 1) != 1)

    @model_validator(mode="after")
    def _can_be_held_to_it(self) -> "SamplingRequest":
        """Refuse what two fields ask for against each other."""
        is_formatted = self.response_format is not None and self.response_format.grammar is not None
        if is_formatted and self.structured_outputs is not None:
            raise ValueError("response_format and structured_outputs: give one of them")
        if self.choices or self.grammar:
            if self.ignore_eos or self.min_tokens:
                raise ValueError("ignore_eos and min_tokens: what response_format or structured_outputs ask for ends")
            if self.choices and self._is_penalised:
                raise ValueError("penalties: they do not go with choices")
        return self


class ChatRequest(SamplingRequest):
    """OpenAI's chat completion, under a preference."""

    neutral: ClassVar[Neutral] = OF_A_CHAT

    messages: Annotated[list[Message], Field(fail_fast=True, min_length=1, max_length=256)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    metadata: Annotated[dict[ShortText, Annotated[str, Field(max_length=512)]], at_most(16)] | None = None  # unused
    add_generation_prompt: bool | None = None  # vLLM's, as the next
    continue_final_message: bool | None = None  # go on with the assistant's last message, which is not told again

    @model_validator(mode="after")
    def _is_to_be_answered(self) -> "ChatRequest":
        ends = [message.role for message in self.messages[-2:]]
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs: goes with logprobs=true")
        if self.continue_final_message and self.add_generation_prompt:
            raise ValueError("continue_final_message and add_generation_prompt: give one of them")
        if self.continue_final_message and ends != ["user", "assistant"]:
            raise ValueError("messages: the last one is the assistant's, which goes on, after the user's")
        if not self.continue_final_message and self.add_generation_prompt is False:
            raise ValueError("add_generation_prompt: false goes with continue_final_message only")
        if not self.continue_final_message and ends[-1] != "user":
            raise ValueError("messages: the last one is the user's: it is what is answered")
        return self


class CompletionRequest(SamplingRequest):
    """OpenAI's completion, under a preference."""

    neutral: ClassVar[Neutral] = OF_A_COMPLETION

    prompt: Text | TokenIds | Annotated[list[Text], Many] | Annotated[list[TokenIds], Many]  # each is continued n times
    max_tokens: Annotated[int, Field(ge=0)] | None = None  # 0: only the prompt is read
    logprobs: Annotated[int, Field(ge=0, le=20)] | Literal[False] | None = None
    echo: bool | None = None  # tell the prompt too, and with `logprobs` its log-probabilities

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts as a list, each a text or token ids."""
        prompt = self.prompt
        if isinstance(prompt, str) or isinstance(prompt[0], int):
            return [prompt]
        return list(prompt)

    @model_validator(mode="after")
    def _echoes_free_text(self) -> "CompletionRequest":
        if self.echo and (self.choices or self.grammar):
            raise ValueError("echo: not with structured_outputs or response_format")
        return self


class OptionScore(Body):
    """An option: log-probability and tokens of the answer that names it, and its share among the options."""

    index: int
    letter: str
    text: str
    logprob: float | None
    num_tokens: int | None
    probability: float


class PolicyResponse(Body):
    """Who answered: the policy, its adapter, the preference as it was understood (axis -> weight of the first pole),
    and how a weight between two poles was met."""

    model: str
    adapter: str | None
    preference: dict[str, float] | None
    mixing: Literal["adapter", "probabilities", "steering"] | None


class ChooseResponse(PolicyResponse):
    """What a policy chooses. Probabilities are the softmax, over the options, of the scores that decide."""

    choice: int | None
    letter: str | None
    option: str | None
    options: list[OptionScore] | None
    all: list[int] | None
    all_probability: float | None
    all_reason: str | None = None  # why there is no *All* set
    usage: dict[str, Any]


class AnswerScore(Body):
    """The sum over the tokens of an answer, its end-of-text included."""

    logprob: float
    num_tokens: int


class PreferenceScores(PolicyResponse):
    """The answers' log-probabilities under one preference."""

    answers: list[AnswerScore]


class ScoreResponse(Body):
    """One result for each preference, in the order in which they were given."""

    results: list[PreferenceScores]
    usage: dict[str, Any]


class CompareSide(PolicyResponse):
    """One pole's answer, or what lies between: a choice where options are given, else text."""

    pole: str
    weight: float  # of the first pole
    chosen: ChooseResponse | None
    text: str | None


class CompareResponse(Body):
    """Both poles of an axis, and the answer between them if `weight` was given."""

    axis: str
    first: CompareSide
    second: CompareSide
    between: CompareSide | None  # None too for text where no adapter lies between the poles


class ErrorDetail(Body):
    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorResponse(Body):
    """An error in OpenAI's form."""

    error: ErrorDetail
