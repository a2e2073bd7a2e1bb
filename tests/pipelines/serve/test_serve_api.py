"""Tests of the API with a tiny model in this process: its answers equal what evaluation measures."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import numpy as np
import openai
import pytest
import torch

from pft_core.data.records import Option, PairedExample
from pft_core.evaluation.answers import (
    AnswerSettings,
    Question,
    by_likelihood,
    candidates,
    encode_options,
    score_branches,
)
from pft_core.evaluation.steering import SteeringVectors, steered
from pft_core.files import file_sha256
from pft_core.policies.identity import base_digest
from pft_core.policies.model import load_policy
from pft_core.policies.model_ref import ModelRef
from pft_core.policies.pretrained import load_tokenizer
from pft_core.policies.soup import interpolate_adapters
from pft_core.prompts.rendering import PromptStyle, condition_text, render_prompt
from pft_core.scoring.scorer import BranchScorer
from tests.builders import SPACE, record
from tests.serving import CPU, LocalServer, serve_config, write_policy

RECORDS = [record(number, axis=axis, num_options=n) for number, axis, n in ((1, "Risk", 3), (2, "Pace", 2))]
OPTIONS = ["go 1", "stay 1", "wait"]


@pytest.fixture(scope="module")
def places(tiny_qwen2: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("policies")
    styles = {"options": PromptStyle("after", "option")}
    names = enumerate(("policy", "first", "second", "options"))
    return {n: write_policy(root / n, tiny_qwen2, seed=i, style=styles.get(n, PromptStyle())) for i, n in names}


@pytest.fixture(scope="module")
def server(places: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    config = serve_config(
        places["policy"],
        tmp_path_factory.mktemp("cache"),
        adapters={"one-sided": str(places["first"]), "options": str(places["options"])},
        ends={"first": str(places["first"]), "second": str(places["second"])},
        engine={"name": "transformers", "max_length": 512},
    )
    with LocalServer(config).running() as running:
        yield running


@pytest.fixture(scope="module")
def client(server: LocalServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as session:
        yield session


def post(client: httpx.Client, path: str, **body: Any) -> Any:
    answer = client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def refusal(client: httpx.Client, path: str, status: int, **body: Any) -> str:
    answer = client.post(path, json=body)
    assert answer.status_code == status, answer.text
    return str(answer.json()["error"]["message"])


def choose(client: httpx.Client, example: PairedExample, **body: Any) -> Any:
    return post(client, "/v1/choose", scenario=example.scenario, options=[o.text for o in example.options], **body)


class Offline:
    """A policy scored in the same way as in `pft evaluate`."""

    def __init__(self, place: Path, *, adapter: Path | None = None):
        self.ref = ModelRef.load(place)
        model = load_policy(self.ref.base, str(adapter or self.ref.adapter), None, precision="fp32", device=CPU)
        self.how: dict[str, Any] = {
            "tokenizer": load_tokenizer(self.ref.base),
            "settings": AnswerSettings(self.ref.style, self.ref.space, 512, 8192, 1),
        }
        self.scorer = BranchScorer(model)

    def logps(self, question: Question) -> np.ndarray:
        (example,) = encode_options([question], **self.how)
        return score_branches([example], scorer=self.scorer, tokens_per_batch=8192)[0]  # type: ignore[list-item]

    def probabilities(self, question: Question) -> np.ndarray:
        odds = np.exp(self.logps(question) - self.logps(question).max())
        return odds / odds.sum()


def probabilities(answer: Any) -> list[float]:
    return [option["probability"] for option in answer["options"]]


@pytest.mark.parametrize("place", ["policy", "options"])
def test_choices_and_log_probabilities_equal_those_of_the_evaluation(
    client: httpx.Client, places: dict[str, Path], place: str
) -> None:
    offline = Offline(places[place])
    for example in RECORDS:
        for side, preference in ((0, SPACE.axis(example.axis).first.name), (1, SPACE.axis(example.axis).second.name),
                                 (None, None)):  # fmt: skip
            answer = choose(client, example, model=place, preference=preference)
            one, every = Question(example, "one", side), Question(example, "all", side)
            logps = [option["logprob"] for option in answer["options"]]
            np.testing.assert_allclose(logps, offline.logps(one), atol=1e-3)
            expected = by_likelihood([one, every], scorer=offline.scorer, **offline.how)
            assert [frozenset({answer["choice"]}), frozenset(answer["all"])] == expected
            assert sum(probabilities(answer)) == pytest.approx(1)


def test_the_probability_of_the_set_is_its_probability_among_all_sets(
    client: httpx.Client, places: dict[str, Path]
) -> None:
    answer = choose(client, RECORDS[0], preference="Bold")
    every = Question(RECORDS[0], "all", 0)
    place = candidates(every).index(tuple(answer["all"]))
    assert answer["all_probability"] == pytest.approx(Offline(places["policy"]).probabilities(every)[place], abs=1e-3)


def test_with_more_than_five_options_the_answer_says_why_it_has_no_set(client: httpx.Client) -> None:
    answer = post(client, "/v1/choose", scenario="The plan", options=list("abcdef"))
    assert answer["all"] is None
    assert "6 options" in answer["all_reason"]
    assert len(answer["options"]) == 6


def test_a_weight_between_two_ends_uses_their_interpolation(
    client: httpx.Client, places: dict[str, Path], tmp_path: Path
) -> None:
    parts = [(places["first"] / "adapter", 0.3), (places["second"] / "adapter", 0.7)]
    offline = Offline(places["first"], adapter=interpolate_adapters(parts, tmp_path / "soup"))
    answer = choose(client, RECORDS[0], preference={"Bold": 3, "Careful": 7})
    assert answer["mixing"] == "adapter"
    assert answer["adapter"].startswith("slider-0.30@")
    # The adapter holds the preference, so the prompt states no pole.
    expected = offline.probabilities(Question(RECORDS[0], "one", None))
    np.testing.assert_allclose(probabilities(answer), expected, atol=1e-3)


def test_all_forms_of_one_weight_get_the_same_answer_which_states_the_weight(client: httpx.Client) -> None:
    for forms, weight in (
        ([{"Bold": 0.025}, {"Careful": 0.975}, [0.025, 0.5], "Careful"], 0.0),  # the nearest of twenty steps is a pole
        ([{"Careful": 0.01}, [0.99999, 0.5], "Bold"], 1.0),
        ([{"Bold": 0.425}, {"Careful": 0.575}, [0.425, 0.5], {"Bold": 17, "Careful": 23}, {"Bold": 0.4}], 0.4),
    ):
        first, *others = [choose(client, RECORDS[0], preference=each) for each in forms]
        assert first["preference"] == {"Risk": weight}
        assert all(other == first for other in others)


@pytest.mark.parametrize("model", [None, "one-sided"])
@pytest.mark.parametrize("side", [0, 1])
def test_a_weight_of_0_or_1_gives_the_same_answer_as_the_poles_name(
    client: httpx.Client, model: str | None, side: int
) -> None:
    pole, other = ("Bold", "Careful")[side], ("Careful", "Bold")[side]
    named = choose(client, RECORDS[0], model=model, preference=pole)
    forms: list[Any] = [
        {pole: 1, other: 0},
        {pole: 1},
        {other: 1e-17},
        [1 - side, 0.5],
        {"axis": "Risk", "pole": pole},
    ]
    assert all(choose(client, RECORDS[0], model=model, preference=each) == named for each in forms)
    body: dict[str, Any] = {"scenario": RECORDS[0].scenario, "answers": OPTIONS, "model": model}
    scores = [post(client, "/v1/score", **body, preferences=[each])["results"] for each in (pole, *forms)]
    assert all(each == scores[0] for each in scores)
    comparison = post(client, "/v1/compare", scenario="The plan", options=OPTIONS, weight=1.0 - side, model=model)
    end = comparison["second" if side else "first"]
    assert {**comparison["between"], "pole": pole, "chosen": end["chosen"]} == end
    np.testing.assert_allclose(probabilities(comparison["between"]["chosen"]), probabilities(end["chosen"]), atol=1e-5)
    chat: dict[str, Any] = {"messages": [{"role": "user", "content": "The plan"}], "max_tokens": 4, "temperature": 0}
    texts = [
        post(client, "/v1/chat/completions", **chat, model=model, preference=each)["choices"][0]["message"]["content"]
        for each in (pole, *forms)
    ]
    assert len(set(texts)) == 1


def test_without_ends_the_options_probabilities_are_mixed(client: httpx.Client, places: dict[str, Path]) -> None:
    answer = choose(client, RECORDS[0], model="one-sided", preference={"Bold": 0.25, "Careful": 0.75})
    assert answer["mixing"] == "probabilities"
    offline = Offline(places["first"])
    sides = [offline.probabilities(Question(RECORDS[0], "one", side)) for side in (0, 1)]
    np.testing.assert_allclose(probabilities(answer), 0.25 * sides[0] + 0.75 * sides[1], atol=1e-3)
    assert answer["choice"] == int(np.argmax(0.25 * sides[0] + 0.75 * sides[1]))
    message = refusal(client, "/v1/chat/completions", 400, model="one-sided",
                      messages=[{"role": "user", "content": "hi"}], preference={"Bold": 1, "Careful": 1})  # fmt: skip
    assert "ends" in message


def test_a_list_preference_states_every_axis_that_is_not_neutral(client: httpx.Client, places: dict[str, Path]) -> None:
    answer = choose(client, RECORDS[0], preference=[1, 0])
    assert answer["preference"] == {"Risk": 1.0, "Pace": 0.0}
    expected = Offline(places["policy"]).probabilities(Question(RECORDS[0], "one", 0, others=(("Pace", 1),)))
    np.testing.assert_allclose(probabilities(answer), expected, atol=1e-3)
    neutral = choose(client, RECORDS[0], preference=[1, 0.5])
    assert probabilities(neutral) == probabilities(choose(client, RECORDS[0], preference="Bold"))


def test_scores_are_log_probabilities_of_answers_under_each_preference(
    client: httpx.Client, places: dict[str, Path]
) -> None:
    answer = post(client, "/v1/score", scenario="The plan .", answers=["go now", "stay"],
                  preferences=["Bold", "Careful", None])  # fmt: skip
    free = PairedExample("r", "Risk", "The plan .", (Option("go now", 0), Option("stay", 0)), "response")
    offline = Offline(places["policy"])
    for row, side in zip(answer["results"], (0, 1, None), strict=True):
        expected = offline.logps(Question(free, "one", side))
        np.testing.assert_allclose([cell["logprob"] for cell in row["answers"]], expected, atol=1e-3)


def test_a_comparison_equals_the_choices_under_both_poles(client: httpx.Client) -> None:
    example = RECORDS[1]
    options = [option.text for option in example.options]
    both = post(client, "/v1/compare", scenario=example.scenario, options=options, axis="Pace", weight=0.5)
    for side, pole in (("first", "Fast"), ("second", "Slow")):
        assert both[side]["pole"] == pole
        np.testing.assert_allclose(
            probabilities(both[side]["chosen"]), probabilities(choose(client, example, preference=pole)), atol=1e-5
        )
    assert both["between"]["mixing"] == "adapter"
    free = post(client, "/v1/compare", scenario="The plan", max_tokens=4)
    assert isinstance(free["first"]["text"], str)
    assert free["first"]["chosen"] is None


def test_a_chat_has_the_prompt_of_training(client: httpx.Client) -> None:
    style = PromptStyle()
    message = PairedExample("r", "Risk", "Which plan ?", (), "response")
    prompt = render_prompt(message, side=0, form="one", style=style, space=SPACE).text
    how = {"model": "policy", "max_tokens": 8, "temperature": 0}
    plain = post(client, "/v1/completions", prompt=prompt, **how)
    chat = post(client, "/v1/chat/completions", messages=[{"role": "user", "content": "Which plan ?"}],
                preference="Bold", **how)  # fmt: skip
    assert chat["usage"]["prompt_tokens"] == plain["usage"]["prompt_tokens"]
    # In a plain frame, answers begin with a space that belongs to the frame.
    assert chat["choices"][0]["message"]["content"] == plain["choices"][0]["text"].removeprefix(" ")


def test_a_completion_states_a_preference_before_its_prompt(client: httpx.Client) -> None:
    how = {"model": "policy", "max_tokens": 6, "temperature": 0}
    stated = condition_text(SPACE, "Risk", 1) + "\nWhich plan ?"
    by_preference = post(client, "/v1/completions", prompt="Which plan ?", preference="Careful", **how)
    assert by_preference["choices"] == post(client, "/v1/completions", prompt=stated, **how)["choices"]


def test_a_stream_adds_up_to_the_whole_answer(client: httpx.Client) -> None:
    body = {"model": "policy", "prompt": "Which plan ?", "max_tokens": 12, "seed": 3, "n": 2, "logprobs": 1}
    whole = post(client, "/v1/completions", **body)
    texts, tokens, reasons = ["", ""], [0, 0], [None, None]
    lines = client.post("/v1/completions", json={**body, "stream": True, "stream_options": {"include_usage": True}})
    events = [line.removeprefix("data: ") for line in lines.text.splitlines() if line]
    assert events[-1] == "[DONE]"
    *chunks, last = [json.loads(event) for event in events[:-1]]
    for chunk in chunks:
        (choice,) = chunk["choices"]
        texts[choice["index"]] += choice["text"]
        tokens[choice["index"]] += len(choice["logprobs"]["tokens"])
        reasons[choice["index"]] = choice["finish_reason"] or reasons[choice["index"]]
    assert texts == [choice["text"] for choice in whole["choices"]]
    assert tokens == [len(choice["logprobs"]["tokens"]) for choice in whole["choices"]]
    assert reasons == [choice["finish_reason"] for choice in whole["choices"]]
    assert last["usage"] == whole["usage"]
    assert texts[0] != texts[1]  # each of n has a seed of its own


def test_a_stop_string_ends_the_answer_and_is_not_shown(client: httpx.Client) -> None:
    body = {"model": "base", "prompt": "The town", "max_tokens": 24, "temperature": 0}
    text = post(client, "/v1/completions", **body)["choices"][0]["text"]
    stop = text[5:8]  # it may span several tokens
    assert len(stop) == 3
    for stream in (False, True):
        answer = client.post("/v1/completions", json={**body, "stop": [stop], "stream": stream})
        if stream:
            events = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
            shown = "".join(event["choices"][0]["text"] for event in events)
            reason = events[-1]["choices"][0]["finish_reason"]
        else:
            shown, reason = (answer.json()["choices"][0][key] for key in ("text", "finish_reason"))
        assert shown == text[: text.index(stop)]
        assert reason == "stop"


def test_a_structured_choice_is_one_of_the_choices(client: httpx.Client) -> None:
    choices = ["go now", "stay", "go"]
    body = {"messages": [{"role": "user", "content": "Which ?"}], "structured_outputs": {"choice": choices}}
    answers = {
        post(client, "/v1/chat/completions", temperature=2, seed=seed, **body)["choices"][0]["message"]["content"]
        for seed in range(12)
    }
    assert answers <= set(choices)


def test_an_openai_client_works_unchanged(server: LocalServer) -> None:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused")
    models = [model.id for model in client.models.list()]
    assert models[0].startswith("policy@")
    assert models[1] == "base"
    chat = client.chat.completions.create(
        model="policy",
        messages=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Which plan ?"}],
        max_completion_tokens=5,
        logprobs=True,
        top_logprobs=3,
        extra_body={"preference": "Bold"},
    )
    assert chat.model == models[0]
    assert chat.usage is not None
    assert chat.choices[0].logprobs is not None
    assert chat.choices[0].logprobs.content is not None
    assert len(chat.choices[0].logprobs.content[0].top_logprobs) == 3
    stream = client.chat.completions.create(
        model="policy", messages=[{"role": "user", "content": "Which plan ?"}], max_tokens=5, stream=True
    )
    assert [chunk.choices[0].finish_reason for chunk in stream][-1] in ("stop", "length")
    text = client.completions.create(model=models[0], prompt=[5, 6, 7], max_tokens=3, logprobs=2, temperature=0)
    assert text.choices[0].logprobs is not None
    with pytest.raises(openai.NotFoundError, match="not served"):
        client.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": "hi"}])
    with pytest.raises(openai.BadRequestError, match="tools"):
        client.chat.completions.create(model="policy", messages=[{"role": "user", "content": "hi"}],
                                       tools=[{"type": "function", "function": {"name": "f"}}])  # fmt: skip


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/v1/choose", {"preference": "Bald"}, "Did you mean 'Bold'"),
        ("/v1/choose", {"preference": [1]}, "has 2 axes"),
        ("/v1/choose", {"options": ["a"]}, "options"),
        ("/v1/choose", {"temperature": 1}, "temperature"),
        ("/v1/choose", {"scenario": "plan " * 600}, "takes at most 512"),
        ("/v1/completions", {"prompt": "x", "max_tokens": 4000}, "takes at most 512"),
        ("/v1/completions", {"prompt": "x", "n": 9}, "at most 8 texts"),
        ("/v1/completions", {"prompt": [70000]}, "70000 is not a token id"),
        ("/v1/chat/completions", {"messages": [{"role": "assistant", "content": "x"}]}, "user"),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}]},
            "text",
        ),
        ("/v1/compare", {"axis": "Speed"}, "no axis 'Speed'"),
        ("/v1/choose", {"preferences": ["Bold"]}, "preferences: unknown field. Did you mean `preference` (one pref"),
        ("/v1/score", {"preference": "Bold"}, "preference: unknown field. Did you mean `preferences` (a list)?"),
        ("/v1/choose", {"option": ["a", "b"]}, "option: unknown field. Did you mean `options`?"),
        ("/v1/choose", {"extra_body": {"preference": "Bold"}}, "put its fields beside the others"),
        ("/v1/choose", {"options": ["a", "b", "a"]}, "options 0 and 2 (counted from 0) are the same text"),
    ],
)
def test_an_invalid_request_gets_a_message_with_the_place(
    client: httpx.Client, path: str, body: dict[str, Any], message: str
) -> None:
    required = {"scenario": "The plan", "options": OPTIONS} if path in ("/v1/choose", "/v1/compare") else {}
    assert message in refusal(client, path, 400, **(required | body))


@pytest.mark.parametrize("body", [[], "text", 3])
def test_a_body_that_is_no_object_is_refused(client: httpx.Client, body: Any) -> None:
    answer = client.post("/v1/choose", json=body)
    assert (answer.status_code, answer.json()["error"]["message"]) == (400, "the body must be a JSON object")


def test_an_unknown_route_says_where_the_routes_stand(client: httpx.Client) -> None:
    message = refusal(client, "/chat/completions", 404)
    assert message == "no route POST /chat/completions; routes stand under /v1 (a client's base URL ends in /v1)"


def test_neutral_fields_are_accepted_and_change_nothing(client: httpx.Client) -> None:
    chat = {"messages": [{"role": "user", "content": "Which plan ?"}], "max_tokens": 3, "temperature": 0}
    neutral = {"response_format": {"type": "text"}, "tools": [], "tool_choice": "auto", "frequency_penalty": 0}
    answers = [post(client, "/v1/chat/completions", **chat, **more)["choices"] for more in ({}, neutral)]
    assert answers[0] == answers[1]
    assert "response_format" in refusal(client, "/v1/chat/completions", 400, **chat, response_format={"type": "json"})


def test_each_prompt_of_a_list_is_continued_like_a_single_prompt(client: httpx.Client) -> None:
    body = {"model": "policy", "max_tokens": 6, "temperature": 0, "preference": "Bold"}
    prompts = ["Which plan ?", "The town"]
    alone = [post(client, "/v1/completions", prompt=prompt, **body) for prompt in prompts]
    both = post(client, "/v1/completions", prompt=prompts, n=2, **body)
    texts = [answer["choices"][0]["text"] for answer in alone]
    assert [choice["text"] for choice in both["choices"]] == [texts[0], texts[0], texts[1], texts[1]]
    assert [choice["index"] for choice in both["choices"]] == [0, 1, 2, 3]
    assert both["usage"]["prompt_tokens"] == sum(answer["usage"]["prompt_tokens"] for answer in alone)
    assert "n=3 with 3 prompts" in refusal(client, "/v1/completions", 400, prompt=["a", "b", "c"], n=3)


def test_a_choice_with_a_special_token_is_refused(client: httpx.Client, server: LocalServer) -> None:
    eos = load_tokenizer(ModelRef.load(Path(server.config.policy)).base).eos_token
    body = {"prompt": "Which ?", "structured_outputs": {"choice": [eos, "go"]}}
    assert "special token" in refusal(client, "/v1/completions", 400, **body)


def test_with_too_many_options_for_sets_the_answer_has_a_choice_and_a_reason(client: httpx.Client) -> None:
    answer = post(client, "/v1/choose", scenario="Which ?", options=[f"plan {i}" for i in range(6)])
    assert answer["choice"] is not None
    assert answer["all"] is None
    assert answer["all_reason"] == "6 options: sets are scored for at most 5 options"


def test_without_an_adapter_between_the_poles_a_weight_of_one_states_the_pole(client: httpx.Client) -> None:
    for model in ("one-sided", "options"):  # the slider is the default policy's
        at_pole, stated, vector = (
            choose(client, RECORDS[0], model=model, preference=preference)
            for preference in ({"Bold": 0, "Careful": 2}, "Careful", [0, 0.5])
        )
        assert at_pole == stated == vector
    messages = [{"role": "user", "content": "Which plan ?"}]
    body = {"model": "one-sided", "messages": messages, "max_tokens": 3, "preference": {"Bold": 1, "Careful": 0}}
    assert post(client, "/v1/chat/completions", **body)["choices"]


def test_policies_are_listed_with_the_digests_that_identify_them(client: httpx.Client, places: dict[str, Path]) -> None:
    listed = client.get("/v1/models").json()["data"]
    ref = ModelRef.load(places["policy"])
    assert listed[0]["adapter_sha256"] == ref.adapter_sha256
    assert listed[0]["template_digest"] == ref.template_digest
    one = client.get(f"/v1/models/{listed[0]['id']}").json()
    assert one["space"] == json.loads(json.dumps(ref.space.to_dict()))
    assert client.get("/v1/models/nobody").status_code == 404


def test_a_steered_base_gets_its_steering_vector_and_no_stated_preference(
    places: dict[str, Path], tmp_path: Path
) -> None:
    ref = ModelRef.load(places["policy"])
    vectors = SteeringVectors(
        (1,), {"Risk": torch.linspace(-2, 2, 32)[None]}, ref.template_digest, base_digest(ref.base)
    )
    vectors.save(tmp_path / "vectors.safetensors")
    steering = {"vectors": str(tmp_path / "vectors.safetensors"), "layer": 1, "multiplier": 3.0}
    config = serve_config(places["policy"], tmp_path / "cache", engine={"name": "transformers"}, steering=steering)
    base = Offline(places["policy"])
    scorer = BranchScorer(load_policy(ref.base, None, None, precision="fp32", device=CPU), backend="separate")
    (example,) = encode_options([Question(RECORDS[0], "one", None)], **base.how)
    with LocalServer(config).running() as server, httpx.Client(base_url=server.url, timeout=60) as client:
        # A weight of 0.75 is halfway from neutral to the first pole.
        for preference, multiplier in (("Bold", 3.0), ("Careful", -3.0), ({"Bold": 3, "Careful": 1}, 1.5), (None, 0.0)):
            answer = choose(client, RECORDS[0], model="steered", preference=preference, forms=["one"])
            with steered(scorer, vectors.direction("Risk", 1), layer=1, multiplier=multiplier):
                (expected,) = score_branches([example], scorer=scorer, tokens_per_batch=8192)  # type: ignore[list-item]
            np.testing.assert_allclose([o["logprob"] for o in answer["options"]], expected, atol=1e-3)
            assert answer["mixing"] == ("steering" if preference else None)
        assert "no steering vector" in refusal(client, "/v1/choose", 400, model="steered", preference="Fast",
                                               scenario="x", options=["a", "b"])  # fmt: skip


def test_an_answer_that_takes_too_long_is_aborted(places: dict[str, Path], tmp_path: Path) -> None:
    limits = {"timeout_s": 0.3, "max_tokens": 2000}
    config = serve_config(places["policy"], tmp_path / "cache", engine={"name": "transformers"}, limits=limits)
    body = {"model": "base", "prompt": "The town", "max_tokens": 2000, "temperature": 0}
    with LocalServer(config).running() as server, httpx.Client(base_url=server.url, timeout=60) as client:
        assert "within 0.3 s" in refusal(client, "/v1/completions", 504, **body)
        streamed = client.post("/v1/completions", json={**body, "stream": True}).text
        assert "not finished within 0.3 s" in streamed.splitlines()[-4]
        assert streamed.endswith("data: [DONE]\n\n"), "an aborted stream also ends with [DONE]"
        assert post(client, "/v1/completions", **{**body, "max_tokens": 1})["choices"], "other requests are answered"


def test_replacing_a_policy_under_load_loses_no_request(places: dict[str, Path], tmp_path: Path) -> None:
    """The folder is a link. Before the link is changed the old policy answers, afterwards the new one, never a mix."""
    current = tmp_path / "current"
    current.symlink_to(places["first"])
    config = serve_config(places["policy"], tmp_path / "cache", engine={"name": "transformers"},
                          adapters={"current": str(current)})  # fmt: skip
    seen: list[tuple[str, list[float]]] = []
    with LocalServer(config).running() as server, httpx.Client(base_url=server.url, timeout=60) as client:
        for number in range(40):
            if number == 20:
                (tmp_path / "next").symlink_to(places["second"])
                (tmp_path / "next").replace(current)
            answer = choose(client, RECORDS[0], model="current", preference="Bold", forms=["one"])
            seen.append((answer["model"], [option["logprob"] for option in answer["options"]]))
    assert len({model for model, _ in seen}) == 2
    for place, part in (("first", seen[:20]), ("second", seen[20:])):
        offline = Offline(places[place]).logps(Question(RECORDS[0], "one", 0))
        for _, logps in part:
            np.testing.assert_allclose(logps, offline, atol=1e-3)


def test_the_error_about_a_damaged_policy_says_nothing_about_its_files(
    places: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "root"
    shutil.copytree(places["first"], root / "whole")
    shutil.copytree(places["second"], root / "cut")
    weights = root / "cut" / "adapter" / "adapter_model.safetensors"
    config = serve_config(places["policy"], tmp_path / "cache", store={"root": str(root)})
    with LocalServer(config).running() as server, httpx.Client(base_url=server.url, timeout=60) as client:
        assert client.get("/v1/models/cut").json()["adapter_sha256"] == file_sha256(weights)
        shutil.copyfile(root / "whole" / "adapter" / "adapter_model.safetensors", weights)
        answer = client.get("/v1/models/cut")
        assert answer.status_code == 404, "not the adapter that its reference describes"
        assert str(tmp_path) not in answer.text
        shutil.copyfile(root / "whole" / "model_ref.json", root / "cut" / "model_ref.json")
        assert client.get("/v1/models/cut").json()["adapter_sha256"] == file_sha256(weights)
        (root / "cut" / "model_ref.json").write_text("{}")
        for answer in (
            client.get("/v1/models/cut"),
            client.post("/v1/choose", json={"model": "cut", "scenario": "x", "options": ["a", "b"]}),
        ):
            assert answer.status_code == 404
            assert str(tmp_path) not in answer.text
        weights.write_bytes(weights.read_bytes()[:100])
        shutil.copyfile(root / "whole" / "model_ref.json", root / "cut" / "model_ref.json")
        answer = client.post("/v1/choose", json={"model": "cut", "scenario": "x", "options": ["a", "b"]})
        assert 400 <= answer.status_code < 500
        assert str(tmp_path) not in answer.text
        assert client.post("/v1/choose", json={"scenario": "x", "options": ["a", "b"]}).status_code == 200
    assert str(root) in caplog.text


def test_tokens_of_choices_and_scores_are_counted(server: LocalServer, client: httpx.Client) -> None:
    def prompt_tokens() -> float:
        return float(server.metrics.registry.get_sample_value("pft_tokens_total", {"kind": "prompt"}) or 0)

    for path, body in (("/v1/choose", {"options": OPTIONS}), ("/v1/score", {"answers": OPTIONS})):
        before = prompt_tokens()
        usage = post(client, path, scenario="The plan", **body)["usage"]
        assert prompt_tokens() - before == usage["prompt_tokens"] > 0


def test_requests_and_tokens_are_counted(client: httpx.Client) -> None:
    post(client, "/v1/completions", prompt="Which plan ?", max_tokens=3, temperature=0)
    text = client.get("/metrics").text
    assert 'pft_requests_total{route="/v1/completions",status="200"}' in text
    assert 'pft_tokens_total{kind="completion"}' in text


# --- a base without an adapter


def test_a_bare_base_answers_every_route(tiny_qwen2: Path, tmp_path: Path) -> None:
    config = serve_config(tiny_qwen2, tmp_path / "cache", engine={"max_length": 512})
    with LocalServer(config).running() as bare, httpx.Client(base_url=bare.url, timeout=60) as client:
        question = {"scenario": "The plan", "options": OPTIONS}
        choice = post(client, "/v1/choose", **question)
        assert (choice["model"], choice["adapter"], choice["preference"]) == ("policy", None, None)
        assert sum(option["probability"] for option in choice["options"]) == pytest.approx(1)
        assert post(client, "/v1/score", scenario="x", answers=["a", "b"], preferences=[None])["results"]
        assert post(client, "/v1/completions", prompt="The plan", max_tokens=3)["choices"]
        assert post(client, "/v1/chat/completions", messages=[{"role": "user", "content": "x"}], max_tokens=3)
        assert client.get("/v1/models/policy").json()["space"]["axes"] == []
        for preference in ("Bold", {}, {"Bold": 1}):
            assert "has no preference axes" in refusal(client, "/v1/choose", 400, **question, preference=preference)
        assert "has no axis" in refusal(client, "/v1/compare", 400, **question)
