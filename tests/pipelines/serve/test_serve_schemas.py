"""Tests of request bodies: neutral values, types, invalid JSON, and the cheap refusal of large bodies."""

import asyncio
import gzip
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from pydantic import ValidationError

from pft_core.policies.pretrained import load_tokenizer
from pipelines.serve.policies.catalog import Catalog
from pipelines.serve.requests import choice_handler, completions, policy_resolver, structured_outputs
from pipelines.serve.requests.policy_resolver import PolicyResolver
from pipelines.serve.requests.schemas import ChatRequest, ChooseRequest, CompletionRequest
from tests.serving import LocalServer, serve_config, write_policy

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "The town"}], "max_tokens": 2}
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def server(tiny_qwen2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    root = tmp_path_factory.mktemp("bodies")
    policy = write_policy(root / "policy", tiny_qwen2, seed=1)
    config = serve_config(policy, root / "cache", engine={"max_length": 256}, limits={"timeout_s": 2})
    with LocalServer(config).running() as running:
        yield running


@pytest.fixture(scope="module")
def client(server: LocalServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as session:
        yield session


def refused(client: httpx.Client, path: str, content: bytes, **headers: str) -> str:
    answer = client.post(path, content=content, headers=headers or JSON)
    assert answer.status_code == 400, answer.text
    return str(answer.json()["error"]["message"])


# --- neutral values


ABSENT: dict[str, Any] = {
    "service_tier": "auto", "functions": [], "function_call": "none", "repetition_penalty": 1.0, "top_k": -1,
    "min_p": 0.0, "min_tokens": 0, "ignore_eos": False, "length_penalty": 1, "echo": False, "use_beam_search": False,
    "skip_special_tokens": True, "stop_token_ids": [], "bad_words": [], "chat_template_kwargs": {}, "priority": 0,
    "add_generation_prompt": True, "continue_final_message": False, "modalities": ["text"], "documents": [],
    "logit_bias": {}, "tools": [], "frequency_penalty": 0, "presence_penalty": 0.0, "prompt_cache_key": "a",
    "structured_outputs": {"choice": None, "json": None}, "include_stop_str_in_output": False,
}  # fmt: skip
NULLS = ("service_tier", "tools", "tool_choice", "functions", "seed", "stop", "n", "temperature", "top_p", "stream",
         "max_completion_tokens", "logit_bias", "audio", "prediction", "reasoning_effort", "web_search_options",
         "guided_json", "best_of", "preference", "model", "a_field_of_next_year")  # fmt: skip


def test_null_and_neutral_values_of_any_field_change_nothing(client: httpx.Client) -> None:
    choices = client.post("/v1/chat/completions", json={**CHAT, "temperature": 0}).json()["choices"]
    for more in (dict.fromkeys(NULLS), ABSENT):
        answer = client.post("/v1/chat/completions", json={**CHAT, **more, "temperature": 0})
        assert answer.status_code == 200, answer.text
        assert answer.json()["choices"] == choices
    plain = {"prompt": "The town", "max_tokens": 2, "logprobs": False, "suffix": None, "best_of": 1, "echo": False}
    answer = client.post("/v1/completions", json=plain)
    assert (answer.status_code, answer.json()["choices"][0]["logprobs"]) == (200, None)
    score = {"scenario": "x", "answers": ["a"], "preferences": [None], "n": None}
    assert client.post("/v1/score", json=score).status_code == 200


# The defaults of vLLM's own request classes, besides null.
DEFAULTS: dict[str, Any] = {
    "include_reasoning": True, "return_token_offsets": False, "mm_payload": "tensors", "verbosity": "medium",
    "routed_experts_prompt_start": 0, "parallel_tool_calls": True, "top_logprobs": 0, "tool_choice": "none",
    "structured_outputs": {"json": None, "disable_any_whitespace": False, "disable_additional_properties": False},
}  # fmt: skip


def test_whether_a_value_is_neutral_depends_on_its_object(client: httpx.Client) -> None:
    """`weight` belongs to a message, not to /v1/choose; the neutral `add_special_tokens` differs by route."""
    message = {**CHAT["messages"][0], "weight": 1}
    choose = {"scenario": "x", "options": ["a", "b"]}
    plain = {"prompt": "The town", "max_tokens": 2}
    no_top = {name: value for name, value in DEFAULTS.items() if name != "top_logprobs"}
    for path, body in (
        ("/v1/chat/completions", {**CHAT, **DEFAULTS, "messages": [message], "add_special_tokens": False}),
        ("/v1/completions", {**plain, **no_top, "add_special_tokens": True}),
        ("/v1/choose", {**choose, "preference": {"axis": None, "pole": "Bold", "Careful": None}}),
    ):
        answer = client.post(path, json=body)
        assert answer.status_code == 200, answer.text
    for path, body, name in (
        ("/v1/chat/completions", {**CHAT, "add_special_tokens": True}, "add_special_tokens"),
        ("/v1/completions", {**plain, "add_special_tokens": False}, "add_special_tokens"),
        ("/v1/choose", {**choose, "weight": 1}, "weight"),
        ("/v1/chat/completions", {**CHAT, "web_search_options": {}}, "web_search_options"),
        ("/v1/chat/completions", {**CHAT, "top_logprobs": 2}, "top_logprobs"),
        ("/v1/completions", {**plain, "structured_outputs": {"disable_any_whitespace": True}},
         "structured_outputs.disable_any_whitespace"),
    ):  # fmt: skip
        assert refused(client, path, json.dumps(body).encode()).startswith(f"{name}:")


def test_requests_with_as_many_stop_strings_as_evaluations_send_are_accepted(client: httpx.Client) -> None:
    stops = ["\nclass", "\ndef", "\n#", "\nif", "\nprint", "<|im_end|>"]
    body = {"prompt": "The town", "max_tokens": 4, "stop": stops}
    assert client.post("/v1/completions", json=body).status_code == 200
    assert "stop" in refused(client, "/v1/completions", json.dumps({**body, "stop": ["a"] * 65}).encode())


def test_an_answer_can_be_sent_back_as_history(client: httpx.Client) -> None:
    answer = {"role": "assistant", "content": "go", "refusal": None, "annotations": [], "audio": None,
              "tool_calls": None, "function_call": None, "reasoning_content": None}  # fmt: skip
    messages = [*CHAT["messages"], answer, *CHAT["messages"]]
    assert client.post("/v1/chat/completions", json={**CHAT, "messages": messages}).status_code == 200
    messages[1] = {"role": "assistant", "content": None}  # an empty answer
    assert client.post("/v1/chat/completions", json={**CHAT, "messages": messages}).status_code == 200
    for role in ("user", "system"):
        messages[1] = {"role": role, "content": None}
        message = refused(client, "/v1/chat/completions", json.dumps({**CHAT, "messages": messages}).encode())
        assert message == "messages.1.content: Field required"
    messages[1] = {**answer, "tool_calls": [{"id": "1"}]}
    message = refused(client, "/v1/chat/completions", json.dumps({**CHAT, "messages": messages}).encode())
    assert message.startswith("messages.1.tool_calls:")


@pytest.mark.parametrize("more", [{"top_k": -2}, {"repetition_penalty": 0}, {"service_tier": "flex"}, {"min_p": 1.1},
                                  {"temprature": 0}, {"store": True}, {"functions": [{}]}, {"top_k": False},
                                  {"tools": [1]}, {"tool_choice": "required"}, {"echo": True}, {"logit_bias": {"5": 1}},
                                  {"guided_json": {"type": "object"}}, {"reasoning_effort": "low"}])  # fmt: skip
def test_an_unknown_field_or_unsupported_value_is_refused_by_name(client: httpx.Client, more: dict[str, Any]) -> None:
    assert refused(client, "/v1/chat/completions", json.dumps({**CHAT, **more}).encode()).startswith(next(iter(more)))


@pytest.mark.parametrize("more", [{"max_tokens": "5"}, {"temperature": "1"}, {"n": True}, {"stream": "true"},
                                  {"seed": "1"}, {"logprobs": 1}])  # fmt: skip
def test_a_value_of_another_type_is_refused(client: httpx.Client, more: dict[str, Any]) -> None:
    assert refused(client, "/v1/chat/completions", json.dumps({**CHAT, **more}).encode()).startswith(next(iter(more)))


# --- bodies that are not JSON


def test_json_without_its_content_type_is_refused(client: httpx.Client) -> None:
    body = json.dumps(CHAT).encode()
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        message = refused(client, "/v1/chat/completions", body, **{"Content-Type": kind})
        assert f"the body has the content type '{kind}'" in message
        assert "Content-Type: application/json" in message
    assert "has no content type" in refused(client, "/v1/chat/completions", body, Accept="*/*")


def test_an_error_in_json_is_reported_with_its_place(client: httpx.Client) -> None:
    message = refused(client, "/v1/choose", b'{"scenario": "x",\n "options": ["a" "b"]}')
    assert message == "the body is not valid JSON: Expecting ',' delimiter at line 2, column 18 (character 35)"
    assert "line 1, column 1 " in refused(client, "/v1/choose", b"nothing")
    assert "byte 13 is not utf-8 text" in refused(client, "/v1/choose", b'{"scenario":"\xff"}')
    assert "nested too deeply" in refused(client, "/v1/choose", b"[" * 100_000)
    assert "too many digits" in refused(client, "/v1/choose", b"1" * 10_000)


def test_an_empty_or_compressed_body_is_refused_with_the_reason(client: httpx.Client) -> None:
    assert refused(client, "/v1/choose", b"") == "the body is empty: send a JSON object"
    for content in (gzip.compress(json.dumps(CHAT).encode()), b"{\x1f"):
        for kind in ("application/json", "text/plain"):
            headers = {"Content-Type": kind, "Content-Encoding": "gzip"}
            assert "Content-Encoding: gzip" in refused(client, "/v1/chat/completions", content, **headers)


@pytest.mark.parametrize(("path", "allowed"), [("/healthz", "GET, HEAD"), ("/v1/models/policy", "GET, HEAD"),
                                               ("/v1/choose", "POST")])  # fmt: skip
def test_for_another_method_the_response_lists_all_methods_of_a_route(
    client: httpx.Client, path: str, allowed: str
) -> None:
    answer = client.delete(path)
    assert (answer.status_code, answer.headers["Allow"]) == (405, allowed)


# --- requests that would take long


WORDS = " ".join(["the"] * 49_000)
LARGE: dict[str, tuple[str, bytes]] = {
    "options": ("/v1/choose", json.dumps({"scenario": "x", "options": [WORDS] * 5}).encode()),
    "sides": ("/v1/compare", json.dumps({"scenario": "x", "options": [WORDS] * 5, "weight": 0.5}).encode()),
    "answers": ("/v1/score", json.dumps({"scenario": WORDS, "answers": ["a", "b"]}).encode()),
    "count": ("/v1/score", json.dumps({"scenario": "x", "answers": ["a"] * 64, "preferences": [None] * 16}).encode()),
    "prompts": ("/v1/completions", json.dumps({"prompt": ["x"] * 256}).encode()),
    "prompt": ("/v1/completions", json.dumps({"prompt": WORDS}).encode()),
    "messages": ("/v1/chat/completions", json.dumps({"messages": [{"role": "user", "content": WORDS}] * 5}).encode()),
}


@pytest.mark.parametrize("case", LARGE)
def test_too_many_items_or_characters_are_refused_before_tokenization(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("tokenized")

    tokenizers = {policy_resolver: ["tokenize_prompts"], completions: ["tokenize_prompts", "tokenize"]}
    tokenizers[choice_handler] = ["tokenize", "encode_options"]
    for module, name in [(module, name) for module, names in tokenizers.items() for name in names]:
        monkeypatch.setattr(module, name, never)
    refused(client, *LARGE[case])


FAULTS = {
    "fields": b'{"prompt":"a",' + b",".join(b'"%d":1' % i for i in range(80_000)) + b"}",
    "metadata": b'{"messages":[],"metadata":{' + b",".join(b'"%d":1' % i for i in range(80_000)) + b"}}",
    "preference": b'{"preference":{' + b",".join(b'"%d":[]' % i for i in range(80_000)) + b"}}",
    "prompts": b'{"prompt":[' + b",".join([b"[]"] * 20_000) + b"]}",
    "messages": b'{"messages":[' + b",".join([b"{}"] * 256) + b"]}",
}


@pytest.mark.parametrize("case", FAULTS)
def test_of_very_many_errors_in_a_body_only_a_few_are_reported(case: str) -> None:
    body = {"metadata": ChatRequest, "messages": ChatRequest, "preference": ChooseRequest}.get(case, CompletionRequest)
    with pytest.raises(ValidationError) as caught:
        body.model_validate(json.loads(FAULTS[case]))
    assert caught.value.error_count() < 12


MANY: dict[str, Any] = {f"{i:x}": {} for i in range(80_000)}
LONG_SCHEMAS = {
    "properties": {"properties": MANY},
    "lists": {"anyOf": [[]] * 300_000},
    "numbers": {"enum": [1] * 400_000},
    "one text": {"const": "a" * 900_000},
    "names": {"a" * 450_000: 1, "b" * 450_000: 1},
}


@pytest.mark.parametrize("case", LONG_SCHEMAS)
def test_a_long_schema_is_refused_before_all_of_it_is_read(monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    def never(*_: Any) -> Any:
        raise AssertionError("read")

    monkeypatch.setattr(structured_outputs, "schema_grammar", never)
    schema = LONG_SCHEMAS[case]
    named = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    constraints: list[dict[str, Any]] = [
        {"response_format": named},
        *({"structured_outputs": {"json": each}} for each in (schema, json.dumps(schema))),
    ]
    for each in constraints:
        with pytest.raises(ValidationError, match="longer than 50000 characters"):
            CompletionRequest.model_validate({"prompt": "a", **each})


def test_the_counted_length_of_a_schema_is_at_most_that_of_its_text() -> None:
    for schema in ({"a": [1, "", {}], "b": {"c": None, "d": [[]]}}, {}, [], "x"):
        fits = json.dumps(schema, separators=(",", ":"), ensure_ascii=False)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(structured_outputs, "MAX_CHARACTERS", len(fits))
            assert structured_outputs.refuse_long(schema) == schema


def test_a_penalty_too_small_for_float32_is_refused() -> None:
    for penalty in (1e-320, 1e-38, 0.009):
        with pytest.raises(ValidationError, match=r"repetition_penalty\n.*greater than or equal to 0\.01"):
            CompletionRequest.model_validate({"prompt": "a", "repetition_penalty": penalty})
    CompletionRequest.model_validate({"prompt": "a", "repetition_penalty": 0.01})


def test_while_a_text_is_tokenized_other_requests_are_answered_and_the_deadline_holds(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[str] = []
    original = policy_resolver.tokenize_prompts

    def slowly(*arguments: Any) -> Any:
        threads.append(threading.current_thread().name)
        time.sleep(2.5)
        return original(*arguments)

    for module in (policy_resolver, completions):
        monkeypatch.setattr(module, "tokenize_prompts", slowly)
    waits, answers = [], []
    body = {"scenario": "x", "options": ["a", "b"], "forms": ["one"]}
    request = threading.Thread(target=lambda: answers.append(client.post("/v1/choose", json=body)))
    request.start()
    while request.is_alive():
        started = time.perf_counter()
        assert client.get("/healthz").status_code == 200
        waits.append(time.perf_counter() - started)
        time.sleep(0.05)
    assert answers[0].status_code == 504
    assert all(name.startswith("tokenizing") for name in threads)
    assert sorted(waits)[len(waits) * 9 // 10] < 0.1
    assert max(waits) < 1  # far below 2.5 s, even on a busy machine


def test_waiting_work_is_dropped_with_its_request(server: LocalServer) -> None:
    done: list[int] = []

    async def ask() -> None:
        resolver = PolicyResolver(server.config, Catalog(server.config, load_tokenizer))
        first = asyncio.create_task(resolver.run_in_thread(time.sleep, 0.2))
        second = asyncio.create_task(resolver.run_in_thread(done.append, 1))
        await asyncio.sleep(0.05)
        second.cancel()
        await first
        await resolver.run_in_thread(done.append, 2)

    asyncio.run(ask())
    assert done == [2]
