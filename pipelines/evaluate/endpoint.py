"""A served policy as an answerer: the questions of an evaluation, asked over HTTP.

Likelihood goes to /v1/choose and /v1/score, which render the policy's own words; generation goes to /v1/completions,
with the prompt rendered here from the style and the space that the server tells.
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
from pft_core.prompts import PromptStyle, render_prompt

KEY_VARIABLE = "PFT_API_KEY"
IN_FLIGHT = 16
PATIENCE_S = 300.0  # how long one question is asked again while the server is busy or restarting
BASE = "base"
REJECTED = {"context_length_exceeded": "overlong", "control_token": "control_token"}  # a server's code, and the reason

Scoring = Literal["letter", "option", "generate"]


class Endpoint:
    """The HTTP side: JSON in and out, asked again with the same request id where the server says to come back."""

    def __init__(self, url: str, *, timeout_s: float = 300):
        """url: of the server, with or without /v1. The key is in PFT_API_KEY, where the server wants one.

        Raises UserError for a URL or a key that is none.
        """
        key = os.environ.get(KEY_VARIABLE, "")
        if not (key.isascii() and key.isprintable()):
            raise UserError(f"{KEY_VARIABLE}: holds characters that no key has: copy the key again")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.url = url.rstrip("/").removesuffix("/v1")
        try:
            self._client = httpx.Client(base_url=self.url, headers=headers, timeout=timeout_s)
        except httpx.InvalidURL as error:
            raise UserError(f"endpoint={url!r}: no URL ({error}): give one such as http://127.0.0.1:8000") from None
        self._has_answered = False

    def post(self, path: str, body: dict[str, Any]) -> Any:
        return self._asked("POST", path, json=body)

    def get(self, path: str) -> Any:
        return self._asked("GET", path)

    def _asked(self, method: str, path: str, **content: Any) -> Any:
        headers = {"X-Request-Id": uuid.uuid4().hex}
        end, pause_s = time.monotonic() + PATIENCE_S, 0.5
        while True:
            told = ""
            try:
                answer = self._client.request(method, path, headers=headers, **content)
                if answer.status_code not in (429, 503) or time.monotonic() > end:
                    self._has_answered = True
                    return self._content(path, answer)
                told = answer.headers.get("Retry-After", "")
            except httpx.HTTPError as error:
                # A server that has answered before is starting again; one that never did is not there.
                if not self._has_answered or time.monotonic() > end:
                    raise UserError(f"{self.url}{path}: no answer ({error}): is the server running there?") from None
            # Some later than others: they were all sent away together.
            time.sleep((float(told) if told.isdigit() else pause_s) * random.uniform(0.5, 1.5))
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
    """The server does not take a question as long as this, or with such texts; reason: of the reject."""

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class ServedPolicy:
    """A served policy: what identifies it, and how it and its base answer. has_base: the server has the base too."""

    ref: ModelRef
    answer: Answerer
    base_answer: Answerer | None
    has_base: bool

    @staticmethod
    def at(url: str, model: str | None, *, scoring: Scoring | None, max_new_tokens: int) -> "ServedPolicy":
        """Ask the server what it serves. model: its name there; None: the default.

        Raises UserError where nothing answers, or where the policy asks for answers of another style than `scoring`.
        """
        endpoint = Endpoint(url)
        listed = _listed(endpoint)
        told = endpoint.get(f"/v1/models/{model or listed[0]}")
        ref = _reference(told, endpoint)
        if scoring not in (None, "generate", ref.style.answer):
            raise UserError(f"scoring={scoring}: {told['id']} is served as it was trained, by {ref.style.answer}")
        if scoring == "generate":
            how: dict[str, Any] = {"endpoint": endpoint, "ref": ref, "max_new_tokens": max_new_tokens}
            answer, base_answer = (partial(by_writing, model=name, **how) for name in (told["id"], BASE))
        else:
            answer, base_answer = (partial(by_choosing, model=name, endpoint=endpoint) for name in (told["id"], BASE))
        has_base = BASE in listed
        return ServedPolicy(ref, answer, base_answer if has_base and told["id"] != BASE else None, has_base)


def _listed(endpoint: Endpoint) -> list[str]:
    """Return the names of the served policies, the default first. Raises UserError."""
    try:
        names = [str(told["id"]) for told in endpoint.get("/v1/models")["data"]]
    except (KeyError, TypeError):
        names = []
    if not names:
        raise UserError(f"{endpoint.url}: lists no models: is it a `pft serve`?")
    return names


def _reference(told: dict[str, Any], endpoint: Endpoint) -> ModelRef:
    """Build the reference from what the server tells of a policy. Raises UserError."""
    try:
        return ModelRef(
            base=told["base"],
            adapter=told["adapter"],
            weights=None,
            style=PromptStyle.from_dict(told["style"]),
            space=PreferenceSpace.from_dict(told["space"]),
            trained_sides=tuple(told["trained_sides"]),
            template_digest=told["template_digest"],
            data_digest=told["data_digest"],
            config_digest=told["config_digest"],
            adapter_sha256=told["adapter_sha256"],
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{endpoint.url}: does not say what it serves ({error}): is it a `pft serve`?") from None


def by_choosing(questions: Sequence[Question], *, endpoint: Endpoint, model: str) -> list[Answer]:
    """Choose by likelihood, as `by_likelihood` does offline."""

    def ask(question: Question) -> Answer:
        if (reject := unscorable(question)) is not None:
            return reject
        record = question.record
        texts = [option.text for option in record.options]
        preference = _preference(question)
        if record.presentation == "response":
            given = {"answers": texts, "preferences": [preference]}
            scored = endpoint.post("/v1/score", {"model": model, "scenario": record.scenario, **given})
            answers = scored["results"][0]["answers"]
            # Per token: texts differ in length, and their sums would favour the short ones.
            logps, counts = (np.array([a[key] for a in answers], np.float32) for key in ("logprob", "num_tokens"))
            return best(question, logps / counts)
        shown = {"options": texts, "preference": preference, "forms": [question.form]}
        told = endpoint.post("/v1/choose", {"model": model, "scenario": record.scenario, **shown})
        if question.form == "all":
            return frozenset(told["all"])
        return WeightedChoice({told["choice"]}, [option["probability"] for option in told["options"]])

    return at_once(ask, questions)


def by_writing(
    questions: Sequence[Question], *, endpoint: Endpoint, model: str, ref: ModelRef, max_new_tokens: int
) -> list[Answer]:
    """Generate greedily and parse strictly, as `by_generation` does offline."""

    def ask(question: Question) -> Answer:
        style, space = ref.style, ref.space
        if question.record.presentation == "response":
            return _reject(question, "no_listed_options", "free answers are not shown: use scoring=letter or option")
        prompt = render_prompt(question.record, side=question.side, form=question.form, style=style, space=space)
        body = {"model": model, "prompt": prompt.text, "temperature": 0, "max_tokens": max_new_tokens}
        reply = endpoint.post("/v1/completions", body)["choices"][0]["text"]
        return read_reply(reply, question, style)

    return at_once(ask, questions)


def at_once(ask: Callable[[Question], Answer], questions: Sequence[Question]) -> list[Answer]:
    """Ask several questions at a time; one that the server does not take is a reject."""

    def asked(question: Question) -> Answer:
        try:
            return ask(question)
        except RejectedError as error:
            return _reject(question, error.reason, str(error))

    with ThreadPoolExecutor(IN_FLIGHT) as pool:
        return list(pool.map(asked, questions))


def _preference(question: Question) -> dict[str, str] | None:
    if question.side is None:
        return None
    return {"axis": question.record.axis, "pole": ("first", "second")[question.side]}


def _reject(question: Question, reason: str, detail: str) -> Reject:
    return Reject(f"{question.record.id}:{question.form}", "scenario", reason, detail)
