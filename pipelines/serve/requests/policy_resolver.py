"""Resolving a request's policy, and how its preference is applied: in the prompt, by an adapter, steering or mixing."""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeVar

from pft_core.encoding import control_token_in, tokenize_prompts
from pft_core.errors import UserError
from pft_core.prompts import Condition, condition_text, read_condition
from pipelines.serve.engines import Steering
from pipelines.serve.metrics import note
from pipelines.serve.policies import Catalog, Policy, UnknownModelError, UnreachableError
from pipelines.serve.requests.schemas import Preference
from pipelines.serve.serve_config import ServeConfig

log = logging.getLogger(__name__)

Mixing = Literal["adapter", "probabilities", "steering"] | None
T = TypeVar("T")


class ControlTokenError(UserError):
    """A text contains a control token of the tokenizer."""


class TooLongError(UserError):
    """Prompt and answer have more tokens than the server accepts."""


@dataclass(frozen=True)
class ResolvedPolicy:
    """A policy and the conditions to use it under; several weighted parts mean that probabilities are to be mixed."""

    policy: Policy
    condition: Condition
    parts: tuple[tuple[Condition, float], ...]
    steering: Steering | None = None
    mixing: Mixing = None

    @property
    def lines(self) -> list[str]:
        """Return the lines that state the only part's poles, one for each."""
        ((condition, _),) = self.parts
        style, space = self.policy.ref.style, self.policy.ref.space
        return [condition_text(space, axis, side, condition=style.condition) for axis, side in condition.stated]

    @property
    def response_fields(self) -> dict[str, Any]:
        """Return the fields of every response: model, adapter, mixing, and the preference as understood."""
        weights = {axis: 1.0 - side for axis, side in self.condition.stated}
        if self.condition.slider is not None:
            weights |= dict([self.condition.slider])
        source = self.policy.source
        return {
            "model": self.policy.id,
            "adapter": None if source is None else source.id,
            "mixing": self.mixing,
            "preference": weights or None,
        }


class PolicyResolver:
    """Resolves the policy of a request, checks its texts, and runs slow work on texts outside the event loop."""

    def __init__(self, config: ServeConfig, catalog: Catalog):
        self._config, self.catalog = config, catalog
        self._longest_token = max(map(len, catalog.tokenizer.get_vocab()))
        # One thread only, because a tokenizer changes its state at first use, which no other thread may see half done.
        self._tokenizing = ThreadPoolExecutor(max_workers=1, thread_name_prefix="tokenizing")
        tokenize_prompts(["a"], catalog.tokenizer)  # loads tables now rather than in the first request

    async def run_in_thread(self, work: Callable[..., T], *arguments: Any) -> T:
        """Run work on texts in the tokenizer's thread, off the event loop; waiting work is dropped with its request."""
        return await asyncio.get_running_loop().run_in_executor(self._tokenizing, partial(work, *arguments))

    def refuse_overlong(self, what: str, *texts: str) -> None:
        """Raise TooLongError if texts have more characters than a prompt's tokens could hold, without tokenizing them.

        what: the name of the texts in the message.
        """
        characters, limit = sum(map(len, texts)), self._config.engine.max_length
        if characters > limit * self._longest_token:
            raise TooLongError(f"{what}: {characters} characters, but this server takes at most {limit} tokens")

    def refuse_control_tokens(self, what: str, *texts: str) -> None:
        """Raise ControlTokenError if a client's texts could end their turn or pose as another speaker's.

        The rule is the same for all routes: text is plain text, and a prompt that needs control tokens is sent as token
        ids.
        """
        token = control_token_in(texts, self.catalog.tokenizer)
        if token is not None:
            raise ControlTokenError(
                f"{what}: {token!r} is a control token of this tokenizer, not text: rephrase it, or send token ids to "
                "/v1/completions"
            )

    def refuse_long_prompt(self, what: str, prompt: str) -> None:
        """Raise TooLongError if a prompt leaves no room for an answer, before it is tokenized with each answer."""
        self.refuse_overlong(what, prompt)
        (ids,), limit = tokenize_prompts([prompt], self.catalog.tokenizer), self._config.engine.max_length
        if len(ids) > limit:
            raise TooLongError(f"{what}: {len(ids)} tokens, but this server takes at most {limit}")

    async def policy(self, model: str | None) -> Policy:
        """Return the policy of a name in a request.

        Raises UnknownModelError if it is not served, and if it is damaged; the log says what is wrong with its files.
        """
        try:
            policy = await asyncio.to_thread(self.catalog.resolve, model)
        except (UnknownModelError, UnreachableError):
            raise
        except UserError as error:
            log.warning("%s cannot be served: %s", model or "the default policy", error)
            raise UnknownModelError(
                f"{model or 'the default policy'} cannot be served now: ask the server's operator"
            ) from None
        note(policy=policy.id)
        return policy

    async def resolve(self, model: str | None, preference: Preference | None) -> ResolvedPolicy:
        """Return the policy of a name under a preference.

        Raises UnknownModelError if the name is not served, UserError if the preference is invalid.
        """
        policy = await self.policy(model)
        condition = read_condition(preference, policy.ref.space)
        if policy.is_steered:
            return self._with_steering(policy, condition)
        if condition.slider is None:
            return ResolvedPolicy(policy, condition, ((condition, 1.0),))
        weight, space = condition.slider[1], policy.ref.space
        if self._config.ends is not None and policy.id == (await self.policy(None)).id:
            return await self._between_ends(policy, condition.at_weight(self._config.ends.nearest(weight), space))
        parts = ((condition.at_weight(1, space), weight), (condition.at_weight(0, space), 1 - weight))
        return ResolvedPolicy(policy, condition, parts, mixing="probabilities")

    async def _between_ends(self, policy: Policy, condition: Condition) -> ResolvedPolicy:
        """Return the policy at a weight between the ends. Its adapter holds the preference, so no pole is stated."""
        if condition.slider is None:  # the nearest step is a pole
            return ResolvedPolicy(policy, condition, ((condition, 1.0),))
        between = await asyncio.to_thread(self.catalog.between, condition.slider[1])
        return ResolvedPolicy(between, condition, ((Condition(condition.stated), 1.0),), mixing="adapter")

    def _with_steering(self, policy: Policy, condition: Condition) -> ResolvedPolicy:
        steering = self._config.steering
        assert steering is not None
        if condition.axis is None:
            return ResolvedPolicy(policy, condition, ((Condition(), 1.0),))
        if len(condition.stated) + bool(condition.slider) > 1:
            raise UserError("preference: the steered model takes one axis at a time: give one axis")
        weight = condition.slider[1] if condition.slider else 1.0 - condition.stated[0][1]
        direction = Steering(condition.axis, steering.multiplier * (2 * weight - 1))
        return ResolvedPolicy(policy, condition, ((Condition(), 1.0),), direction, "steering")
