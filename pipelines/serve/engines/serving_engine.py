"""The protocol of every engine: continue token ids, and score the branches of a prompt.

Engines take ids and return ids and log-probabilities. Rendering, tokenizing and choosing are the same code in front of
every engine.
"""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from pft_core.encoding import BranchedExample
from pipelines.serve.policies import LoadedAdapter


@dataclass(frozen=True)
class Steering:
    """A steering vector to add while an answer is scored or written: `multiplier` times the vector of an axis."""

    axis: str
    multiplier: float


@dataclass(frozen=True)
class Grammar:
    """A constraint on an answer, from its first token to EOS: JSON that fits a schema, or text that matches a regex."""

    kind: Literal["json", "regex"]
    text: str


@dataclass(frozen=True)
class Sampling:
    """Settings for continuing a prompt. Penalties, top_k and min_p mean the same as in vLLM.

    max_tokens 0: only read the prompt. temperature 0: greedy. logprobs: how many of the likeliest tokens to return with
    each sampled one, None for no log-probabilities; prompt_logprobs: the same for the prompt. choices: token ids of the
    only allowed answers (without EOS); empty: any answer. ignore_eos: treat EOS like any other token. top_k 0: all.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    logprobs: int | None = None
    choices: tuple[tuple[int, ...], ...] = ()
    grammar: Grammar | None = None
    prompt_logprobs: int | None = None
    min_tokens: int = 0
    ignore_eos: bool = False
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0


@dataclass(frozen=True)
class GenerationRequest:
    """A prompt to continue. stream: whether to send steps as they come; if not, they may all come at the end."""

    prompt_ids: Sequence[int]
    sampling: Sampling
    steering: Steering | None = None
    stream: bool = True


@dataclass(frozen=True)
class Token:
    """One token, its log-probability at temperature 1, and the likeliest tokens at its position.

    Under a grammar, probabilities are among the allowed tokens. logprob: None if not requested, and for the first token
    of a prompt, which has no context.
    """

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Step:
    """Tokens written since the previous step. The last step has a `finish_reason`: `stop` (EOS) or `length`.

    cached_tokens: how many tokens of the prompt came from a prefix cache; in the first step only. prompt: the tokens of
    the prompt, in the first step, if their log-probabilities were requested. end: the EOS that ended the text, which is
    not among `tokens`.
    """

    tokens: tuple[Token, ...]
    finish_reason: str | None = None
    cached_tokens: int = 0
    prompt: tuple[Token, ...] = ()
    end: Token | None = None


class EngineFault(RuntimeError):
    """The engine cannot continue; its replica has to be replaced."""


class RequestFault(RuntimeError):
    """The engine could not answer one request but continues with all others. A retry would fail in the same way."""


class ServingEngine(Protocol):
    """One model with its adapters. Requests run concurrently, and a dropped request leaves nothing behind."""

    name: str

    def generate(self, request: GenerationRequest, adapter: LoadedAdapter | None) -> AsyncIterator[Step]:
        """Continue a prompt. Raises UserError if the request is not supported, EngineFault if the engine is broken."""
        ...

    async def score(
        self,
        examples: Sequence[BranchedExample],
        adapter: LoadedAdapter | None,
        steering: Steering | None = None,
    ) -> list[NDArray[np.float32]]:
        """Return, for each example, the log-probability of each branch's labels. Raises as `generate` does."""
        ...

    async def check(self) -> None:
        """Raise EngineFault if the engine is broken."""
        ...

    async def close(self) -> None:
        """Release the model and drop running requests."""
        ...
