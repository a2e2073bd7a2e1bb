"""What a client may say, and what it is told: OpenAI's fields, and ours beside them.

A field that is not here is refused, as one that is ignored would change the answer behind the client's back.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from pipelines.serve.requests.neutral import without_neutral

MOST_FIELDS = 100  # of one object: each that is wrong is told, and 80,000 would hold up all others for seconds


def at_most(count: int) -> BeforeValidator:
    """Refuse a large object or list before its items are looked at."""

    def refuse(value: Any) -> Any:
        if isinstance(value, dict | list) and len(value) > count:
            raise ValueError(f"{len(value)} items, {count} are the most")
        return value

    return BeforeValidator(refuse)


Text = Annotated[str, Field(max_length=200_000)]
ShortText = Annotated[str, Field(max_length=200)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
Weight = Annotated[float, Field(ge=0, le=1e6, strict=True)]


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())


class Asking(Body):
    """What a client sends. Strict: a number in quotes is a text, and no number."""

    model_config = ConfigDict(strict=True)

    @model_validator(mode="before")
    @classmethod
    def _without_neutral(cls, raw: Any) -> Any:
        """Take null for absent, in every field, and neutral values of fields that are not here."""
        if not isinstance(raw, dict):
            return raw
        if len(raw) > MOST_FIELDS:
            raise ValueError(f"{len(raw)} fields, {MOST_FIELDS} are the most")
        return without_neutral(raw, cls.model_fields)


# A pole ("axis" and "pole" where several axes have one of that name); both poles with weights (and "axis", where their
# names do not say it); or a number for each axis of the space.
Preference = (
    ShortText
    | Annotated[dict[ShortText, Weight | ShortText], at_most(8)]
    | Annotated[list[Weight], Field(fail_fast=True, max_length=512)]
)


class Question(Asking):
    """What all of our own routes ask about."""

    model: ShortText | None = None
    scenario: Annotated[Text, Field(min_length=1)]
    preference: Preference | None = None


class ChooseBody(Question):
    """A scenario with its options in the order in which they are shown."""

    options: Annotated[list[Annotated[Text, Field(min_length=1)]], Field(min_length=2, max_length=10)]
    forms: Annotated[list[Literal["one", "all"]], Field(min_length=1, max_length=2)] = ["one", "all"]


class ScoreBody(Asking):
    """Free answers to a scenario under each of several preferences."""

    model: ShortText | None = None
    scenario: Annotated[Text, Field(min_length=1)]
    answers: Annotated[list[Annotated[Text, Field(min_length=1)]], Field(min_length=1, max_length=64)]
    preferences: Annotated[list[Preference | None], Field(min_length=1, max_length=16)] = [None]


class CompareBody(Asking):
    """A scenario under both poles of an axis; without options, `max_tokens` of free text are written instead."""

    model: ShortText | None = None
    scenario: Annotated[Text, Field(min_length=1)]
    axis: ShortText | None = None
    options: Annotated[list[Annotated[Text, Field(min_length=1)]], Field(min_length=2, max_length=10)] | None = None
    weight: Annotated[float, Field(ge=0, le=1)] | None = None  # of the first pole: what lies between is told too
    max_tokens: Annotated[int, Field(ge=1)] | None = None


class StructuredOutputs(Asking):
    choice: (
        Annotated[
            list[Annotated[str, Field(min_length=1, max_length=2000)]],
            Field(fail_fast=True, min_length=1, max_length=64),
        ]
        | None
    ) = None


class StreamOptions(Asking):
    include_usage: bool = False
    include_obfuscation: bool | None = None


class PlainText(Asking):
    type: Literal["text"]


class TextPart(Asking):
    type: Literal["text"]
    text: Text


class Message(Asking):
    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[TextPart], Field(fail_fast=True, max_length=64)]
    name: ShortText | None = None

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class SamplingBody(Asking):
    """What chat and plain completions share."""

    model: ShortText | None = None
    preference: Preference | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    n: Annotated[int, Field(ge=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: ShortText | Annotated[list[ShortText], Field(fail_fast=True, max_length=4)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    structured_outputs: StructuredOutputs | None = None  # vLLM's name
    # Accepted, and used for nothing.
    user: ShortText | None = None
    safety_identifier: ShortText | None = None
    prompt_cache_key: ShortText | None = None
    # Accepted where they ask for nothing.
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    presence_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    logit_bias: Annotated[dict[str, float], at_most(0), Field(max_length=0)] | None = None
    response_format: PlainText | None = None
    tools: Annotated[list[Any], at_most(0), Field(max_length=0)] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = None

    @property
    def stops(self) -> list[str]:
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return [stop for stop in stops if stop]


class ChatBody(SamplingBody):
    messages: Annotated[list[Message], Field(fail_fast=True, min_length=1, max_length=256)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    metadata: Annotated[dict[ShortText, Annotated[str, Field(max_length=512)]], at_most(16)] | None = None  # unused
    store: Literal[False] | None = None

    @model_validator(mode="after")
    def _ends_with_the_user(self) -> "ChatBody":
        if self.messages[-1].role != "user":
            raise ValueError("messages: the last one is the user's: it is what is answered")
        return self


class CompletionBody(SamplingBody):
    prompt: (
        Text
        | Annotated[list[TokenId], Field(fail_fast=True, min_length=1, max_length=200_000)]
        | Annotated[list[Text], Field(fail_fast=True, min_length=1, max_length=256)]  # each is continued n times
    )
    logprobs: Annotated[int, Field(ge=0, le=5)] | Literal[False] | None = None
    echo: Literal[False] | None = None
    best_of: Literal[1] | None = None
    suffix: Annotated[str, Field(max_length=0)] | None = None


class OptionScore(Body):
    """An option: log-probability and tokens of the answer that names it, and its share among the options."""

    index: int
    letter: str
    text: str
    logprob: float | None
    num_tokens: int | None
    probability: float


class Told(Body):
    """Who answered: the policy, its adapter, the preference as it was understood (axis -> weight of the first pole),
    and how a weight between two poles was met."""

    model: str
    adapter: str | None
    preference: dict[str, float] | None
    mixing: Literal["adapter", "probabilities", "steering"] | None


class Chosen(Told):
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


class ScoredUnder(Told):
    """The answers' log-probabilities under one preference."""

    answers: list[AnswerScore]


class Scored(Body):
    """One result for each preference, in the order in which they were given."""

    results: list[ScoredUnder]
    usage: dict[str, Any]


class Side(Told):
    """One pole's answer, or what lies between: a choice where options are given, else text."""

    pole: str
    weight: float  # of the first pole
    chosen: Chosen | None
    text: str | None


class Compared(Body):
    axis: str
    first: Side
    second: Side
    between: Side | None  # None too for text where no adapter lies between the poles


class ErrorDetail(Body):
    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(Body):
    error: ErrorDetail
