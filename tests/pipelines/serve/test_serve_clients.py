"""Tests of published clients against a server: it accepts their requests and answers them.

The clients are those of the dependency group `clients`; a test is skipped if its client is not installed.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pydantic
import pytest

from pft_core.prompts.rendering import PromptStyle
from tests.serving import LocalServer, serve_config, write_policy

MESSAGES = [{"role": "user", "content": "The town"}]
PLAIN = {"prompt": "The town"}
SEEDED = {"seed": 1}
KEY = {"api_key": "none"}
# `vllm bench serve`, called directly, because its command needs a package named `vllm`, and the CPU build has another
# name.
VLLM_BENCH_SERVE = """
from vllm.entrypoints.cli.benchmark.serve import BenchmarkServingSubcommand as command
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = FlexibleArgumentParser()
command.add_cli_args(parser)
command.cmd(parser.parse_args())
"""


class Choice(pydantic.BaseModel):
    fits: bool
    number: int = pydantic.Field(ge=0, le=9)


@pytest.fixture(scope="module")
def base(tiny_qwen2: Path) -> Path:
    return tiny_qwen2


@pytest.fixture(scope="module")
def server(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    root = tmp_path_factory.mktemp("clients")
    policy = write_policy(root / "policy", base, seed=1)
    with LocalServer(serve_config(policy, root / "cache", engine={"max_length": 1024})).running() as running:
        yield running


@pytest.fixture(scope="module")
def url(server: LocalServer) -> str:
    return f"{server.url}/v1"


def client_of(module: str) -> Any:
    return pytest.importorskip(module, reason=f"{module} is not installed: pip install 'pft[clients]'")


def test_lm_evals_loglikelihood_equals_the_score(url: str, base: Path) -> None:
    client_of("lm_eval")
    client_of("tenacity")  # from lm-eval's own extra for servers
    from lm_eval.api.instance import Instance
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    frame, answers = PromptStyle().frame, ["garden", "river boat", "a plan to keep"]
    prompt = f"{frame.opening}The town{frame.closing}"
    pairs = [(prompt, f"{frame.answer_lead}{answer}<eos>") for answer in answers]
    model = LocalCompletionsAPI(
        base_url=f"{url}/completions", model="policy", tokenizer=str(base), tokenizer_backend="huggingface",
        batch_size=2, max_length=1024,
    )  # fmt: skip
    loglikelihoods = model.loglikelihood([Instance("loglikelihood", {}, pair, 0) for pair in pairs], disable_tqdm=True)
    scored = httpx.post(f"{url}/score", json={"scenario": "The town", "answers": answers}).json()["results"][0]
    assert [logprob for logprob, _ in loglikelihoods] == pytest.approx(
        [a["logprob"] for a in scored["answers"]], abs=1e-3
    )


@pytest.mark.slow
def test_lm_eval_generates_through_chats_and_completions(url: str, base: Path) -> None:
    client_of("lm_eval")
    client_of("tenacity")  # from lm-eval's own extra for servers
    from lm_eval.api.instance import Instance
    from lm_eval.models.openai_completions import LocalChatCompletion, LocalCompletionsAPI

    settings = {"until": ["\n", "garden"], "max_gen_toks": 8, "temperature": 0, "do_sample": False}
    chat = LocalChatCompletion(base_url=f"{url}/chat/completions", model="policy")
    plain = LocalCompletionsAPI(
        base_url=f"{url}/completions", model="policy", tokenizer=str(base), tokenizer_backend="huggingface"
    )
    for model, prompt in ((chat, _chat_text()), (plain, "The town")):
        requests = [Instance("generate_until", {}, (prompt, dict(settings)), 0)]
        (text,) = model.generate_until(requests, disable_tqdm=True)
        assert isinstance(text, str)


def _chat_text() -> Any:
    from lm_eval.models.api_models import JsonChatStr

    return JsonChatStr(json.dumps([{**MESSAGES[0], "type": "text"}]))


@pytest.mark.slow
def test_litellm_completes_and_streams(url: str) -> None:
    litellm = client_of("litellm")
    how = {"model": "openai/policy", "messages": MESSAGES, "api_base": url, "max_tokens": 8, **SEEDED, **KEY}
    assert isinstance(litellm.completion(**how, temperature=0.5, top_p=0.9).choices[0].message.content, str)
    chunks = list(litellm.completion(**how, stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].usage.completion_tokens > 0
    schema = {"name": "choice", "schema": Choice.model_json_schema()}
    answer = litellm.completion(
        **{**how, "max_tokens": 60}, response_format={"type": "json_schema", "json_schema": schema}
    )
    assert Choice.model_validate_json(answer.choices[0].message.content)
    plain = {"model": "text-completion-openai/policy", "prompt": "The town", "api_base": url, "max_tokens": 4, **KEY}
    assert isinstance(litellm.text_completion(**plain).choices[0].text, str)
    with pytest.raises(litellm.BadRequestError, match="does not call tools"):
        litellm.completion(**how, tools=[{"type": "function", "function": {"name": "f", "parameters": {}}}])


@pytest.mark.slow
def test_langchain_completes_streams_and_parses(url: str) -> None:
    langchain = client_of("langchain_openai")
    model = langchain.ChatOpenAI(model="policy", base_url=url, max_tokens=60, temperature=0.5, **SEEDED, **KEY)
    assert isinstance(model.invoke("The town").content, str)
    assert list(model.stream([("system", "Be brief."), ("user", "The town")]))
    assert isinstance(model.with_structured_output(Choice, method="json_schema").invoke("The town"), Choice)
    assert model.bind(logprobs=True).invoke("The town").response_metadata["logprobs"]["content"]
    assert isinstance(langchain.OpenAI(model="policy", base_url=url, max_tokens=4, **KEY).invoke("The town"), str)


@pytest.mark.slow
def test_llama_index_completes_and_streams(url: str) -> None:
    like = client_of("llama_index.llms.openai_like")
    from llama_index.core.llms import ChatMessage

    # Seeded, because a random model often generates tokens without text, and llama-index returns None for an empty
    # answer.
    how: dict[str, Any] = {"max_tokens": 16, "temperature": 1}
    for is_chat, path, body in ((True, "chat/completions", {"messages": MESSAGES}), (False, "completions", PLAIN)):
        model = like.OpenAILike(
            model="policy", api_base=url, is_chat_model=is_chat, additional_kwargs=SEEDED, **how, **KEY
        )
        (choice,) = httpx.post(f"{url}/{path}", json={**body, **how, **SEEDED}).json()["choices"]
        expected = choice["message"]["content"] if is_chat else choice["text"]
        assert model.complete("The town").text == expected != ""
        assert [*model.stream_complete("The town")][-1].text == expected
        assert model.chat([ChatMessage(role="user", content="The town")]).message.content


@pytest.mark.slow
def test_instructor_parses_answers(url: str) -> None:
    instructor = client_of("instructor")
    import openai

    with openai.OpenAI(base_url=url, **KEY) as plain:
        how = {"model": "policy", "messages": MESSAGES, "response_model": Choice, "max_tokens": 100, "max_retries": 0}
        client = instructor.from_openai(plain, mode=instructor.Mode.JSON_SCHEMA)
        assert isinstance(client.chat.completions.create(**how), Choice)
        with pytest.raises(Exception, match="does not call tools"):
            instructor.from_openai(plain, mode=instructor.Mode.TOOLS).chat.completions.create(**how)


@pytest.mark.slow
def test_vllms_load_generator_gets_every_requested_token(url: str, base: Path, tmp_path: Path) -> None:
    client_of("vllm")
    load = ["--num-prompts", "4", "--random-input-len", "12", "--random-output-len", "6", "--ignore-eos"]
    for backend, path in (("openai", "completions"), ("openai-chat", "chat/completions")):
        run(
            sys.executable, "-c", VLLM_BENCH_SERVE, "--backend", backend,
            "--base-url", url.removesuffix("/v1"), "--endpoint", f"/v1/{path}", "--model", "policy",
            "--tokenizer", str(base), "--dataset-name", "random", *load,
            "--save-result", "--result-dir", str(tmp_path), "--result-filename", f"{backend}.json",
        )  # fmt: skip
        result = json.loads((tmp_path / f"{backend}.json").read_text())
        assert (result["completed"], result["total_output_tokens"]) == (4, 24)


@pytest.mark.slow
def test_guidellm_measures_the_server(url: str, base: Path, tmp_path: Path) -> None:
    client_of("guidellm")
    file = tmp_path / "measured.json"
    run(
        sys.executable, "-m", "guidellm", "run", "--disable-console",
        "--backend", f"kind=openai_http,target={url.removesuffix('/v1')},model=policy",
        "--tokenizer", f"kind=huggingface_auto,model={base}", "--profile", "kind=synchronous",
        "--data", "kind=synthetic_text,prompt_tokens=12,output_tokens=6", "--constraint", "kind=max_requests,count=3",
        "--output", f"kind=json,path={file}",
    )  # fmt: skip
    (benchmark,) = json.loads(file.read_text())["benchmarks"]
    done = benchmark["requests"]["successful"]
    assert (len(done), {each["output_metrics"]["text_tokens"] for each in done}) == (3, {6})


@pytest.mark.slow
def test_openais_client_for_node_completes_streams_and_parses(url: str, tmp_path: Path) -> None:
    node, folder = shutil.which("node"), Path("node_modules/openai")
    if node is None or not folder.is_dir():
        pytest.skip("node or its package is not installed: npm install openai")
    script = tmp_path / "ask.mjs"
    script.write_text(
        f"""import OpenAI from "{(folder / "index.mjs").resolve()}";
const client = new OpenAI({{baseURL: "{url}", apiKey: "none"}});
const how = {{model: "policy", messages: {json.dumps(MESSAGES)}, max_tokens: 60}};
const schema = {{name: "choice", schema: {json.dumps(Choice.model_json_schema())}}};
const format = {{type: "json_schema", json_schema: schema}};
const whole = await client.chat.completions.create({{...how, response_format: format}});
let count = 0;
for await (const chunk of await client.chat.completions.create({{...how, stream: true}})) count += 1;
const plain = await client.completions.create({{model: "policy", prompt: "The town", max_tokens: 4}});
console.log(JSON.stringify([JSON.parse(whole.choices[0].message.content), count, plain.choices[0].text]));
"""
    )
    parsed, count, plain = json.loads(run(node, str(script)))
    assert Choice.model_validate(parsed)
    assert (count > 1, type(plain)) == (True, str)


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout
