"""Tests of what OpenAI clients use: formats, echo, penalties, continued messages, token ids."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import openai
import pydantic
import pytest

from pft_core.policies.pretrained import load_tokenizer
from pft_core.prompts.rendering import PromptStyle
from pipelines.serve.requests.structured_outputs import close_objects
from tests.serving import LocalServer, serve_config, write_policy

EOS = 2
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "The town"}], "max_tokens": 8, "temperature": 0}
PLAIN: dict[str, Any] = {"prompt": "The town", "max_tokens": 8, "temperature": 0}
SCHEMA = {
    "type": "object",
    "properties": {"fits": {"type": "boolean"}, "one": {"enum": ["A", "B"]}},
    "required": ["fits", "one"],
    "additionalProperties": False,
}
NAMED = {"name": "choice", "strict": True, "schema": SCHEMA}


@pytest.fixture(scope="module")
def server(tiny_qwen2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    root = tmp_path_factory.mktemp("openai")
    policy = write_policy(root / "policy", tiny_qwen2, seed=1)
    with LocalServer(serve_config(policy, root / "cache", engine={"max_length": 1024})).running() as running:
        yield running


@pytest.fixture(scope="module")
def client(server: LocalServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as session:
        yield session


@pytest.fixture(scope="module")
def tokenizer(tiny_qwen2: Path) -> Any:
    return load_tokenizer(str(tiny_qwen2))


def ask(client: httpx.Client, defaults: dict[str, Any], **more: Any) -> Any:
    answer = client.post(f"/v1/{'chat/' if 'messages' in defaults else ''}completions", json={**defaults, **more})
    assert answer.status_code == 200, answer.text
    return answer.json()


def refused(client: httpx.Client, defaults: dict[str, Any], **more: Any) -> str:
    answer = client.post(f"/v1/{'chat/' if 'messages' in defaults else ''}completions", json={**defaults, **more})
    assert answer.status_code == 400, answer.text
    return str(answer.json()["error"]["message"])


def text(answer: Any) -> str:
    choice = answer["choices"][0]
    return str(choice["message"]["content"] if "message" in choice else choice["text"])


# --- constrained answers


@pytest.mark.parametrize("defaults", [CHAT, PLAIN], ids=["chat", "plain"])
@pytest.mark.parametrize("temperature", [0, 1.5])
def test_an_answer_follows_its_schema_whatever_the_model_prefers(
    client: httpx.Client, defaults: dict[str, Any], temperature: float
) -> None:
    pytest.importorskip("llguidance")
    constraints: list[dict[str, Any]] = [
        {"response_format": {"type": "json_schema", "json_schema": NAMED}},
        {"structured_outputs": {"json": SCHEMA}},
        {"structured_outputs": {"json": json.dumps(SCHEMA)}},
    ]
    for more in constraints:
        answer = ask(
            client, defaults, max_tokens=60, temperature=temperature, logprobs=1 if defaults is PLAIN else True, **more
        )
        value = json.loads(text(answer))
        assert answer["choices"][0]["finish_reason"] == "stop"
        assert value.keys() == {"fits", "one"}
        assert (type(value["fits"]), value["one"] in "AB") == (bool, True)


def test_objects_have_no_further_properties_unless_the_schema_allows_them() -> None:
    inner = {"type": "object", "properties": {"properties": {"type": "string"}}}
    schema = {"$defs": {"properties": inner}, "anyOf": [inner, {"allOf": [inner]}], "enum": [inner]}
    closed = {**inner, "additionalProperties": False}
    expected = {"$defs": {"properties": closed}, "anyOf": [closed, {"allOf": [inner]}], "enum": [inner]}
    assert close_objects(schema, 64) == expected
    assert close_objects({**inner, "additionalProperties": True}, 64)["additionalProperties"] is True


def test_an_answer_follows_a_regular_expression_and_ends_there(client: httpx.Client) -> None:
    pytest.importorskip("llguidance")
    answer = ask(client, CHAT, max_tokens=40, temperature=1, structured_outputs={"regex": r"[a-c]{3}-\d{2}"})
    assert len(text(answer)) == 6
    assert answer["choices"][0]["finish_reason"] == "stop"


def test_without_a_schema_an_answer_is_any_json_object(client: httpx.Client) -> None:
    pytest.importorskip("llguidance")
    for more in ({"response_format": {"type": "json_object"}}, {"structured_outputs": {"json_object": True}}):
        assert text(ask(client, CHAT, **more)).startswith("{")


def test_a_format_that_cannot_be_enforced_is_refused_by_name(client: httpx.Client) -> None:
    pytest.importorskip("llguidance")
    assert "schema" in refused(client, CHAT, structured_outputs={"json": {"type": "nothing"}})
    assert "regular expression" in refused(client, CHAT, structured_outputs={"regex": "(("})
    assert "not valid JSON" in refused(client, CHAT, structured_outputs={"json": "{"})
    for deep in ("[" * 70 + "]" * 70, "[" * 20_000 + "]" * 20_000, '{"not":' * 70 + "true" + "}" * 70):
        assert "nested more than 64 levels deep" in refused(client, CHAT, structured_outputs={"json": deep})
    both = {"structured_outputs": {"regex": "a", "choice": ["a"]}}
    assert "one of them" in refused(client, CHAT, **both)
    both = {"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}}
    assert "one of them" in refused(client, CHAT, **both)
    assert refused(client, CHAT, response_format={"type": "xml"}).startswith("response_format")
    assert "ignore_eos" in refused(client, CHAT, ignore_eos=True, structured_outputs={"regex": "a"})
    assert text(ask(client, CHAT)) is not None  # the engine continues


def test_a_server_without_llguidance_says_so(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "llguidance", None)
    assert "pip install llguidance" in refused(client, CHAT, response_format={"type": "json_object"})


def test_the_openai_client_parses_answers_into_the_users_classes(server: LocalServer) -> None:
    pytest.importorskip("llguidance")

    class Choice(pydantic.BaseModel):
        fits: bool
        number: int = pydantic.Field(ge=0, le=9)

    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as session:
        answer = session.chat.completions.parse(
            model="policy", messages=CHAT["messages"], response_format=Choice, max_tokens=60
        )
    assert isinstance(answer.choices[0].message.parsed, Choice)


# --- echo


def test_an_echoed_prompt_has_log_probabilities(client: httpx.Client, tokenizer: Any) -> None:
    ids = tokenizer("The town garden")["input_ids"]
    for prompt in ("The town garden", ids, [ids]):
        for max_tokens in (0, 1):
            choice = ask(client, PLAIN, prompt=prompt, max_tokens=max_tokens, echo=True, logprobs=2)["choices"][0]
            logprobs = choice["logprobs"]
            assert choice["text"].startswith("The town garden")
            assert {len(listed) for listed in logprobs.values()} == {len(ids) + max_tokens}
            assert (logprobs["token_logprobs"][0], logprobs["top_logprobs"][0]) == (None, None)
            assert all(value < 0 for value in logprobs["token_logprobs"][1:])
            assert logprobs["text_offset"][: len(ids)] == sorted(logprobs["text_offset"][: len(ids)])


def test_echoed_log_probabilities_equal_those_of_the_score(client: httpx.Client, tokenizer: Any) -> None:
    frame = PromptStyle().frame
    prompt, answer = f"{frame.opening}The town{frame.closing}", f"{frame.answer_lead}" + "garden river boat " * 100
    scored = client.post("/v1/score", json={"scenario": "The town", "answers": ["garden river boat " * 100]}).json()
    before, whole = (tokenizer(t)["input_ids"] for t in (prompt, prompt + answer))  # longer than one part of a prompt
    choice = ask(client, PLAIN, prompt=[*whole, EOS], max_tokens=0, echo=True, logprobs=0)["choices"][0]
    logprobs = choice["logprobs"]["token_logprobs"][len(before) :]
    assert len(logprobs) == scored["results"][0]["answers"][0]["num_tokens"] > 256
    assert math.isclose(sum(logprobs), scored["results"][0]["answers"][0]["logprob"], abs_tol=1e-3)


def test_a_prompt_of_max_length_is_read_if_no_token_is_generated(client: httpx.Client) -> None:
    whole = {"prompt": [5] * 1024, "max_tokens": 0, "echo": True, "logprobs": 0}
    assert ask(client, PLAIN, **whole)["usage"]["prompt_tokens"] == 1024
    assert "1025 + 0 tokens" in refused(client, PLAIN, **{**whole, "prompt": [5] * 1025})
    assert "1024 + 1 tokens" in refused(client, PLAIN, **{**whole, "max_tokens": 1})
    assert "1024 + 1 tokens" in refused(client, PLAIN, **{**whole, "max_tokens": None})


def test_top_logprobs_of_a_completion_include_the_sampled_token_and_a_chats_are_the_likeliest(
    client: httpx.Client,
) -> None:
    for num_top in (0, 1, 20):
        logprobs = ask(client, PLAIN, logprobs=num_top, temperature=2, seed=3, max_tokens=20)["choices"][0]["logprobs"]
        columns = (logprobs[name] for name in ("tokens", "token_logprobs", "top_logprobs"))
        for name, logprob, top in zip(*columns, strict=True):
            assert top[name] >= logprob
            assert len(top) <= num_top + 1
    tokens = ask(client, CHAT, logprobs=True, top_logprobs=2, temperature=2, seed=3)["choices"][0]["logprobs"]
    assert [len(token["top_logprobs"]) for token in tokens["content"]] == [2] * 8


def test_several_prompts_are_echoed_and_a_streamed_one_too(client: httpx.Client, tokenizer: Any) -> None:
    prompts = [tokenizer(text)["input_ids"] for text in ("The town", "a river boat")]
    choices = ask(client, PLAIN, prompt=prompts, echo=True, n=2)["choices"]
    assert [choice["text"].startswith(("The town", "a river boat")[i // 2]) for i, choice in enumerate(choices)] == [
        True
    ] * 4
    with client.stream(
        "POST", "/v1/completions", json={**PLAIN, "echo": True, "logprobs": 1, "stream": True}
    ) as stream:
        chunks = [json.loads(line[6:]) for line in stream.iter_lines() if line.startswith("data: {")]
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == text(ask(client, PLAIN, echo=True))
    assert text(ask(client, PLAIN, max_tokens=0)) == ""


# --- sampling


def test_ignore_eos_and_min_tokens_generate_the_requested_number_of_tokens(client: httpx.Client) -> None:
    ends = {"prompt": [5, EOS], "seed": 1, "temperature": 2, "max_tokens": 200}
    answer = ask(client, PLAIN, ignore_eos=True, **ends)
    assert (answer["usage"]["completion_tokens"], answer["choices"][0]["finish_reason"]) == (200, "length")
    assert ask(client, PLAIN, min_tokens=200, **ends)["usage"]["completion_tokens"] == 200
    assert "min_tokens" in refused(client, PLAIN, min_tokens=9)


def test_settings_that_leave_one_token_are_greedy(client: httpx.Client) -> None:
    greedy = text(ask(client, PLAIN))
    for more in ({"top_p": 0}, {"top_k": 1}, {"min_p": 1}):
        assert text(ask(client, PLAIN, **more, temperature=2, seed=3)) == greedy


def test_penalties_reduce_repetition(client: httpx.Client, tokenizer: Any) -> None:
    def num_repeated(**more: Any) -> int:
        names = ask(client, PLAIN, max_tokens=40, logprobs=0, ignore_eos=True, **more)["choices"][0]["logprobs"][
            "tokens"
        ]
        return len(names) - len(set(names))

    without_penalty = num_repeated()
    assert without_penalty > 0
    assert all(num_repeated(**more) < without_penalty for more in ({"presence_penalty": 2}, {"frequency_penalty": 2},
                                                     {"repetition_penalty": 3}))  # fmt: skip


# --- messages


def test_an_unfinished_message_is_continued(client: httpx.Client) -> None:
    frame = PromptStyle().frame
    messages = [*CHAT["messages"], {"role": "assistant", "content": "a river"}]
    plain = ask(client, PLAIN, prompt=f"{frame.opening}The town{frame.closing}{frame.answer_lead}a river")
    for more in ({}, {"add_generation_prompt": False}):
        continued = ask(client, CHAT, messages=messages, continue_final_message=True, **more)
        assert (text(continued), continued["usage"]) == (text(plain), plain["usage"])
    assert "one of them" in refused(
        client, CHAT, messages=messages, continue_final_message=True, add_generation_prompt=True
    )
    assert refused(client, CHAT, continue_final_message=True).startswith("messages")
    assert "user's" in refused(client, CHAT, messages=messages)


def test_unsupported_fields_are_refused_by_name(client: httpx.Client) -> None:
    image = [{"type": "image_url", "image_url": {"url": "data:,"}}]
    message = refused(client, CHAT, messages=[{"role": "user", "content": image}])
    assert "'image_url' is not supported" in message
    assert "does not call tools" in refused(client, CHAT, tools=[{"type": "function", "function": {"name": "f"}}])
    assert "does not store answers" in refused(client, CHAT, store=True)
    assert ask(client, CHAT, store=False, tools=[], tool_choice="auto", parallel_tool_calls=True)


@pytest.mark.parametrize(("path", "body"), [
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a <eos> b"}]}),
    ("/v1/chat/completions", {"messages": [{"role": "assistant", "content": "<eos>"}, *CHAT["messages"]]}),
    ("/v1/completions", {"prompt": "a <eos>"}), ("/v1/completions", {"prompt": ["a", "<bos>"]}),
    ("/v1/score", {"scenario": "<eos>", "answers": ["a"]}), ("/v1/score", {"scenario": "x", "answers": ["a<eos>"]}),
    ("/v1/compare", {"scenario": "a <eos>", "axis": "Risk"}),
    ("/v1/choose", {"scenario": "<eos>", "options": ["a", "b"]}),
])  # fmt: skip
def test_a_control_token_in_a_text_is_refused_on_every_route(client: httpx.Client, path: str, body: Any) -> None:
    answer = client.post(path, json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "control_token")


# --- usage, health, heads


def test_every_chunk_states_the_usage_if_that_is_requested(client: httpx.Client) -> None:
    for defaults in (CHAT, PLAIN):
        options = {"include_usage": True, "continuous_usage_stats": True}
        body = {**defaults, "stream": True, "stream_options": options, "ignore_eos": True}
        with client.stream("POST", f"/v1/{'chat/' if defaults is CHAT else ''}completions", json=body) as stream:
            chunks = [json.loads(line[6:]) for line in stream.iter_lines() if line.startswith("data: {")]
        counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
        assert counts == sorted(counts)
        assert (counts[0] < 8, counts[-1]) == (True, 8)


def test_every_get_route_answers_head_and_a_server_states_its_version(client: httpx.Client) -> None:
    schema = client.get("/openapi.json").json()
    gets = [path for path, item in schema["paths"].items() if "get" in item]
    for path in [*gets, "/health", "/", "/openapi.json"]:
        path = path.replace("{model}", "policy")
        head, get = client.head(path), client.get(path)
        assert (head.status_code, head.content) == (get.status_code, b"")
        assert head.headers["content-type"] == get.headers["content-type"]
    assert not any("head" in item for item in schema["paths"].values())
    assert client.get("/health").status_code == 200
    assert client.get("/version").json()["version"]
    assert client.head("/v1/choose").status_code == 405


def test_the_openapi_document_describes_every_route_response_and_field(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert operation["summary"], path
            assert operation["description"], path
            assert "422" not in operation["responses"], "invalid requests get 400"
            for response in operation["responses"].values():
                assert response["description"].endswith("."), path
    for name, schema in document["components"]["schemas"].items():
        assert schema["description"].endswith("."), name
        assert all(each["description"].endswith(".") for each in schema["properties"].values()), name
