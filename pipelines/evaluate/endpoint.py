"""A served policy as an answerer: it asks the questions of an evaluation over HTTP.

Likelihood uses /v1/choose and /v1/score, where the server renders the prompt; generation uses /v1/completions, with the
prompt rendered here from the style and space that the server reports.
"""

import os
import random
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import httpx2 as httpx
import numpy as np

from pft_core.data import PreferenceSpace, Reject
from pft_core.errors import UserError
from pft_core.evaluation import Answer, Answerer, Question, WeightedChoice, best, read_reply, unscorable
from pft_core.policies import ModelRef
from pft_core.prompts import Frame, PromptStyle, render_prompt
from pipelines.progress import stage

KEY_VARIABLE = "PFT_API_KEY"
IN_FLIGHT = 16
PATIENCE_S = 300.0  # how long to retry one question while the server is busy or restarting
BASE = "base"
REJECTED = {
    "context_length_exceeded": "overlong",
    "control_token": "control_token",
}  # reject reason by the server's error code

Scoring = Literal["letter", "option", "generate"]


class Endpoint:
    """An HTTP client: JSON in and out; it retries with the same request id if the server is busy."""

    def __init__(self, url: str, *, timeout_s: float = 300):
        """Connect to a server. url: with or without /v1. If the server wants a key, set PFT_API_KEY.

        Raises UserError for an invalid URL or key.
        """
        key = os.environ.get(KEY_VARIABLE, "")
        if not (key.isascii() and key.isprintable()):
            raise UserError(f"{KEY_VARIABLE}: contains characters that no key has: copy the key again")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.url = url.rstrip("/").removesuffix("/v1")
        try:
            self._client = httpx.Client(base_url=self.url, headers=headers, timeout=timeout_s)
        except httpx.InvalidURL as error:
            raise UserError(f"endpoint={url!r}: not a URL ({error}): give one such as http://127.0.0.1:8000") from None
        self._has_answered = False

    def post(self, path: str, body: dict[str, Any]) -> Any:
        return self._request("POST", path, json=body)

    def get(self, path: str) -> Any:
        return self._request("GET", path)

    def _request(self, method: str, path: str, **content: Any) -> Any:
        headers = {"X-Request-Id": uuid.uuid4().hex}
        end, pause_s = time.monotonic() + PATIENCE_S, 0.5
        while True:
            retry_after = ""
            try:
                answer = self._client.request(method, path, headers=headers, **content)
                if answer.status_code not in (429, 503) or time.monotonic() > end:
                    self._has_answered = True
                    return self._content(path, answer)
                retry_after = answer.headers.get("Retry-After", "")
            except httpx.HTTPError as error:
                # A server that has answered before is restarting; one that never did is not there.
                if not self._has_answered or time.monotonic() > end:
                    raise UserError(f"{self.url}{path}: no answer ({error}): is the server running?") from None
            # The random factor spreads retries, since many requests are turned away together.
            time.sleep((float(retry_after) if retry_after.isdigit() else pause_s) * random.uniform(0.5, 1.5))
            pause_s = min(2 * pause_s, 8)

    def _content(self, path: str, answer: Any) -> Any:
        try:
            content = answer.json()
        except ValueError:
            content = {}
        if answer.status_code == 200:
            return content
        error = content.get("error") if isinstance(content, dict) else None
        error = error if isinstance(error, dict) else {}
        if answer.status_code == 400 and error.get("code") in REJECTED:
            raise RejectedError(REJECTED[error["code"]], str(error.get("message")))
        hint = f" (set {KEY_VARIABLE})" if answer.status_code == 401 else ""
        raise UserError(f"{self.url}{path}: {answer.status_code}: {error.get('message', answer.text[:200])}{hint}")


class RejectedError(UserError):
    """Raised if the server rejects a question for its length or texts. reason: the reason of the reject."""

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class ServedPolicy:
    """A served policy: its reference, and answerers for it and its base. has_base: the server also serves the base."""

    ref: ModelRef
    answer: Answerer
    base_answer: Answerer | None
    has_base: bool

    @staticmethod
    def at(url: str, model: str | None, *, scoring: Scoring | None, max_new_tokens: int) -> "ServedPolicy":
        """Look up a policy on a server. model: its name there, None for the default.

        Raises UserError if nothing answers, or if the policy was trained with another answer style than `scoring`.
        """
        endpoint = Endpoint(url)
        names = _model_names(endpoint)
        entry = endpoint.get(f"/v1/models/{model or names[0]}")
        ref = _reference(entry, endpoint)
        if scoring not in (None, "generate", ref.style.answer):
            raise UserError(
                f"scoring={scoring}: {entry['id']} answers as it was trained, by {ref.style.answer}: "
                f"set scoring={ref.style.answer}, or generate"
            )
        how: dict[str, Any]
        if scoring == "generate":
            how = {"endpoint": endpoint, "ref": ref, "max_new_tokens": max_new_tokens}
            answer, base_answer = (partial(by_writing, model=name, **how) for name in (entry["id"], BASE))
        else:
            how = {"endpoint": endpoint, "style": ref.style}
            answer, base_answer = (partial(by_choosing, model=name, **how) for name in (entry["id"], BASE))
        has_base = BASE in names
        return ServedPolicy(ref, answer, base_answer if has_base and entry["id"] != BASE else None, has_base)


def _model_names(endpoint: Endpoint) -> list[str]:
    """Return the names of the served policies, the default first. Raises UserError."""
    try:
        names = [str(entry["id"]) for entry in endpoint.get("/v1/models")["data"]]
    except (KeyError, TypeError):
        names = []
    if not names:
        raise UserError(f"{endpoint.url}: the server lists no models: is it a `pft serve`?")
    return names


def _reference(entry: dict[str, Any], endpoint: Endpoint) -> ModelRef:
    """Build the reference from a server's entry of a policy. Raises UserError."""
    try:
        return ModelRef(
            base=entry["base"],
            adapter=entry["adapter"],
            weights=None,
            style=PromptStyle.from_dict(entry["style"]),
            space=PreferenceSpace.from_dict(entry["space"]),
            trained_sides=tuple(entry["trained_sides"]),
            template_digest=entry["template_digest"],
            data_digest=entry["data_digest"],
            config_digest=entry["config_digest"],
            adapter_sha256=entry["adapter_sha256"],
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{endpoint.url}: the server does not describe its model ({error}): is it a `pft serve`?"
        ) from None


def by_choosing(questions: Sequence[Question], *, endpoint: Endpoint, model: str, style: PromptStyle) -> list[Answer]:
    """Choose by likelihood, as `by_likelihood` does offline."""

    def ask(question: Question) -> Answer:
        if (reject := unscorable(question) or _unservable(question, style)) is not None:
            return reject
        record = question.record
        texts = [option.text for option in record.options]
        preference = _preference(question)
        if record.presentation == "response":
            body = {"answers": texts, "preferences": [preference]}
            scores = endpoint.post("/v1/score", {"model": model, "scenario": record.scenario, **body})
            answers = scores["results"][0]["answers"]
            # Compare means per token, since sums would favor short texts.
            logps, counts = (np.array([a[key] for a in answers], np.float32) for key in ("logprob", "num_tokens"))
            return best(question, logps / counts)
        body = {"options": texts, "preference": preference, "forms": [question.form]}
        reply = endpoint.post("/v1/choose", {"model": model, "scenario": record.scenario, **body})
        if question.form == "all":
            return frozenset(reply["all"])
        return WeightedChoice({reply["choice"]}, [option["probability"] for option in reply["options"]])

    return ask_concurrently(ask, questions)


def by_writing(
    questions: Sequence[Question], *, endpoint: Endpoint, model: str, ref: ModelRef, max_new_tokens: int
) -> list[Answer]:
    """Generate greedily and parse strictly, as `by_generation` does offline."""

    def ask(question: Question) -> Answer:
        style, space = ref.style, ref.space
        if (reject := _unservable(question, style)) is not None:
            return reject
        if question.record.presentation == "response":
            return _reject(
                question, "no_listed_options", "generation needs listed options: use scoring=letter or option"
            )
        prompt = render_prompt(question.record, side=question.side, form=question.form, style=style, space=space)
        body = {"model": model, "prompt": prompt.text, "temperature": 0, "max_tokens": max_new_tokens}
        reply = endpoint.post("/v1/completions", body)["choices"][0]["text"]
        return read_reply(reply, question, style)

    return ask_concurrently(ask, questions)


def ask_concurrently(ask: Callable[[Question], Answer], questions: Sequence[Question]) -> list[Answer]:
    """Ask several questions at a time; a question that the server refuses becomes a reject."""

    def ask_or_reject(question: Question) -> Answer:
        try:
            return ask(question)
        except RejectedError as error:
            return _reject(question, error.reason, str(error))

    answers: list[Answer] = []
    with stage("evaluate", len(questions)) as advance, ThreadPoolExecutor(IN_FLIGHT) as pool:
        for answer in pool.map(ask_or_reject, questions):
            answers.append(answer)
            advance(len(answers))
    return answers


def _unservable(question: Question, style: PromptStyle) -> Reject | None:
    """Return a reject for a dialogue that the policy's chat template renders, as the server takes one message."""
    if not question.record.turns or style.frame == Frame():
        return None
    return _reject(
        question, "turns_not_served", "the server takes one message: evaluate this policy without --endpoint"
    )


def _preference(question: Question) -> dict[str, str] | None:
    if question.side is None:
        return None
    return {"axis": question.record.axis, "pole": ("first", "second")[question.side]}


def _reject(question: Question, reason: str, detail: str) -> Reject:
    return Reject(f"{question.record.id}:{question.form}", "scenario", reason, detail)
