"""What an engine does, whichever library runs it: continue token ids, and score the branches of a prompt.

Ids in, ids and log-probabilities out: rendering, tokenising and choosing are the same code in front of every engine.
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
    """Add `multiplier` times the steering vector of an axis while an answer is read or written."""

    axis: str
    multiplier: float


@dataclass(frozen=True)
class Grammar:
    """What an answer is written in, from its first token to EOS: values of a JSON schema, or what a regex matches."""

    kind: Literal["json", "regex"]
    text: str


@dataclass(frozen=True)
class Sampling:
    """How a prompt is continued; penalties, top_k and min_p as vLLM has them.

    max_tokens 0: only the prompt is read. temperature 0: greedy. logprobs: None for none, else how many of the
    likeliest tokens are told beside the chosen; prompt_logprobs: the same for the prompt. choices: token ids of the
    only answers allowed (without EOS); empty: anything. ignore_eos: EOS is a token like others. top_k 0: all.
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
    """A prompt to be continued; stream: whether steps are wanted as they come, or may come all at the end."""

    prompt_ids: Sequence[int]
    sampling: Sampling
    steering: Steering | None = None
    stream: bool = True


@dataclass(frozen=True)
class Token:
    """One token that was written, its log-probability under the untempered model, and the likeliest in its place.

    Under a grammar, of what it allows; None too for the first token of a prompt, which follows nothing.
    """

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Step:
    """Tokens that were written since the last step; `finish_reason` on the last: `stop` (EOS) or `length`.

    cached_tokens: of the prompt, how many were read from a prefix cache; told once, with the first step.
    prompt: the prompt's tokens, with the first step, where their log-probabilities were asked for; end: the EOS that
    ended the text, which is not among its tokens.
    """

    tokens: tuple[Token, ...]
    finish_reason: str | None = None
    cached_tokens: int = 0
    prompt: tuple[Token, ...] = ()
    end: Token | None = None


class EngineFault(RuntimeError):
    """The engine cannot go on: its replica is to be replaced."""


class RequestFault(RuntimeError):
    """The engine could not answer one request, and goes on with all others: asking it again would end the same."""


class Engine(Protocol):
    """One model with its adapters. Several requests run at once; a request that is dropped leaves nothing behind."""

    name: str

    def generate(self, request: GenerationRequest, adapter: LoadedAdapter | None) -> AsyncIterator[Step]:
        """Continue a prompt. Raises UserError for what this engine cannot do, EngineFault when it is broken."""
        ...

    async def score(
        self,
        examples: Sequence[BranchedExample],
        adapter: LoadedAdapter | None,
        steering: Steering | None = None,
    ) -> list[NDArray[np.float32]]:
        """Return per example the log-probability of each branch's labels. Raises as `generate` does."""
        ...

    async def check(self) -> None:
        """Raise EngineFault when the engine is broken."""
        ...

    async def close(self) -> None:
        """Let go of the model; what runs is dropped."""
        ...
