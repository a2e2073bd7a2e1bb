"""Who is asked, and how a preference reaches it: by words, by an adapter, by a direction, or by mixing."""

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
    """A text spells what the tokenizer reads as a token of control."""


class TooLongError(UserError):
    """Prompt and answer have more tokens than the server takes."""


@dataclass(frozen=True)
class ResolvedPolicy:
    """Who is asked, and under which poles; several parts with weights where probabilities are to be mixed."""

    policy: Policy
    condition: Condition
    parts: tuple[tuple[Condition, float], ...]
    steering: Steering | None = None
    mixing: Mixing = None

    @property
    def lines(self) -> list[str]:
        """Return the lines that state the poles of the only part, one for each."""
        ((condition, _),) = self.parts
        style, space = self.policy.ref.style, self.policy.ref.space
        return [condition_text(space, axis, side, condition=style.condition) for axis, side in condition.stated]

    @property
    def told(self) -> dict[str, Any]:
        """Return what every answer tells of it: model, adapter, mixing, and the preference as it was understood."""
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
    """Finds the policy of a request, and does what takes long with its texts where nobody else waits for it."""

    def __init__(self, config: ServeConfig, catalog: Catalog):
        self._config, self.catalog = config, catalog
        self._longest_token = max(map(len, catalog.tokenizer.get_vocab()))
        # One thread: a tokenizer that is asked for the first time changes, which nobody else may see half done.
        self._tokenizing = ThreadPoolExecutor(max_workers=1, thread_name_prefix="tokenizing")
        tokenize_prompts(["a"], catalog.tokenizer)  # reads tables that the first request would wait for

    async def apart(self, work: Callable[..., T], *arguments: Any) -> T:
        """Do work on texts beside the event loop, which goes on answering; what waits is dropped with its request."""
        return await asyncio.get_running_loop().run_in_executor(self._tokenizing, partial(work, *arguments))

    def refuse_overlong(self, what: str, *texts: str) -> None:
        """Raise TooLongError for texts that have more characters than the tokens of a whole prompt could hold.

        what: how the message calls them. Nothing is tokenised.
        """
        characters, most = sum(map(len, texts)), self._config.engine.max_length
        if characters > most * self._longest_token:
            raise TooLongError(f"{what}: {characters} characters, this server takes {most} tokens")

    def refuse_control_tokens(self, what: str, *texts: str) -> None:
        """Raise ControlTokenError for a client's texts that would end the turn they stand in, or pose as another's.

        One rule for all routes: texts are text, and a prompt that needs tokens of control is given in token ids.
        """
        token = control_token_in(texts, self.catalog.tokenizer)
        if token is not None:
            raise ControlTokenError(
                f"{what}: {token!r} is no text to this tokenizer but a token of control: write it otherwise, or give "
                "/v1/completions token ids"
            )

    def refuse_long_prompt(self, what: str, prompt: str) -> None:
        """Raise TooLongError for a prompt that leaves no room for an answer, before it is tokenised with each."""
        self.refuse_overlong(what, prompt)
        (ids,), most = tokenize_prompts([prompt], self.catalog.tokenizer), self._config.engine.max_length
        if len(ids) > most:
            raise TooLongError(f"{what}: {len(ids)} tokens, max_length is {most}")

    async def policy(self, model: str | None) -> Policy:
        """Return the policy of a name that a client gave.

        Raises UnknownModelError, for a damaged policy too: what is wrong with its files is for the log.
        """
        try:
            policy = await asyncio.to_thread(self.catalog.resolve, model)
        except (UnknownModelError, UnreachableError):
            raise
        except UserError as error:
            log.warning("%s cannot be served: %s", model or "the default policy", error)
            raise UnknownModelError(
                f"{model or 'the default policy'}: cannot be served now: ask its operator"
            ) from None
        note(policy=policy.id)
        return policy

    async def asked(self, model: str | None, preference: Preference | None) -> ResolvedPolicy:
        """Return who answers under a preference. Raises UserError, UnknownModelError."""
        policy = await self.policy(model)
        condition = read_condition(preference, policy.ref.space)
        if policy.steered:
            return self._steered(policy, condition)
        if condition.slider is None:
            return ResolvedPolicy(policy, condition, ((condition, 1.0),))
        weight, space = condition.slider[1], policy.ref.space
        if self._config.ends is not None and policy.id == (await self.policy(None)).id:
            return await self._between_ends(policy, condition.at_weight(self._config.ends.nearest(weight), space))
        parts = ((condition.at_weight(1, space), weight), (condition.at_weight(0, space), 1 - weight))
        return ResolvedPolicy(policy, condition, parts, mixing="probabilities")

    async def _between_ends(self, policy: Policy, condition: Condition) -> ResolvedPolicy:
        """Ask the adapter between the ends, which itself holds the preference: no pole of that axis is stated."""
        if condition.slider is None:  # the nearest is a pole
            return ResolvedPolicy(policy, condition, ((condition, 1.0),))
        between = await asyncio.to_thread(self.catalog.between, condition.slider[1])
        return ResolvedPolicy(between, condition, ((Condition(condition.stated), 1.0),), mixing="adapter")

    def _steered(self, policy: Policy, condition: Condition) -> ResolvedPolicy:
        steering = self._config.steering
        assert steering is not None
        if condition.axis is None:
            return ResolvedPolicy(policy, condition, ((Condition(), 1.0),))
        if len(condition.stated) + bool(condition.slider) > 1:
            raise UserError("preference: one direction is added at a time: give one axis")
        weight = condition.slider[1] if condition.slider else 1.0 - condition.stated[0][1]
        direction = Steering(condition.axis, steering.multiplier * (2 * weight - 1))
        return ResolvedPolicy(policy, condition, ((Condition(), 1.0),), direction, "steering")
