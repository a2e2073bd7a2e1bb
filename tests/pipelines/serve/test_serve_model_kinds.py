"""Tests of models, tokenizers and adapters of other kinds: served correctly, or refused, without a dead replica."""

import asyncio
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from pft_core.errors import UserError
from pft_core.evaluation.answers import generate
from pft_core.policies.model import load_base
from pft_core.policies.pretrained import load_tokenizer
from pft_core.prompts.rendering import Frame, PromptStyle, chat_frame
from pipelines.serve.engines.engine_builders import with_model_limit
from pipelines.serve.engines.serving_engine import GenerationRequest, RequestFault, Sampling
from pipelines.serve.engines.transformers_engine import TransformersEngine, TransformersSettings
from pipelines.serve.policies.adapters import LoadedAdapter
from pipelines.serve.policies.catalog import Catalog
from tests.builders import random_trees
from tests.pipelines.serve.model_kinds import byte_fallback, byte_level, save
from tests.serving import CPU, LocalServer, serve_config, write_policy


def start(model: Path) -> TransformersEngine:
    return TransformersEngine(TransformersSettings(str(model), "fp32", "cpu", 8, 512, 2))


@pytest.mark.parametrize("kind", ["mamba", "lfm2"])
def test_a_model_whose_cache_is_not_plain_keys_and_values_is_refused_at_start(kind: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"not plain keys and values \\({kind}"):
        start(save(tmp_path, byte_level(), kind))


def test_a_model_with_latent_attention_and_experts_is_served(tmp_path: Path) -> None:
    tokenizer = byte_level()
    model = save(tmp_path, tokenizer, "deepseek_v3")
    engine, prompt = start(model), tokenizer("The town has a plan.")["input_ids"]

    async def generated() -> list[int]:
        request = GenerationRequest(prompt, Sampling(6, temperature=0))
        return [token.id async for step in engine.generate(request, None) for token in step.tokens]

    base = load_base(str(model), precision="fp32", gradient_checkpointing=False, device=CPU).eval()
    whole = base.generate(torch.tensor([prompt]), max_new_tokens=6, do_sample=False)[0, len(prompt) :].tolist()
    assert asyncio.run(generated()) == [token for token in whole if token != tokenizer.eos_token_id]
    asyncio.run(engine.close())


def test_a_text_also_ends_at_the_tokens_in_the_models_generation_config(tmp_path: Path) -> None:
    """Gemma's and Llama-3's turns end with such a token. A choice may contain it."""
    tokenizer = byte_level()
    model, eos = save(tmp_path, tokenizer), tokenizer.eos_token_id
    prompt = tokenizer("The town has a plan.")["input_ids"]

    async def generate_one(engine: TransformersEngine, **how: Any) -> tuple[list[int], str | None]:
        request = GenerationRequest(prompt, Sampling(8, temperature=0, **how))
        steps = [step async for step in engine.generate(request, None)]
        return [token.id for step in steps for token in step.tokens], steps[-1].finish_reason

    async def generate_all(*how: dict[str, Any]) -> list[tuple[list[int], str | None]]:
        engine = start(model)
        texts = [await generate_one(engine, **each) for each in how]
        await engine.close()
        return texts

    ((ids, _),) = asyncio.run(generate_all({"ignore_eos": True}))
    place = next(i for i in range(2, 8) if ids[i] not in ids[:i])
    config = json.loads((model / "generation_config.json").read_text()) | {"eos_token_id": [eos, ids[place]]}
    (model / "generation_config.json").write_text(json.dumps(config))
    choice = (ids[place], *ids[:2])
    plain, without_eos, longer, constrained = asyncio.run(
        generate_all({}, {"ignore_eos": True}, {"min_tokens": 8}, {"choices": (choice,)})
    )
    assert plain == (ids[:place], "stop")
    assert without_eos == (ids, "length")
    assert (len(longer[0]), longer[0][:place], ids[place] in longer[0]) == (8, ids[:place], False)
    assert constrained == (list(choice), "stop")
    base = load_base(str(model), precision="fp32", gradient_checkpointing=False, device=CPU).eval()
    arrays = [np.array(prompt), np.array(prompt[1:])]
    offline = generate(arrays, model=base, tokenizer=tokenizer, max_new_tokens=8)
    assert offline[0] == tokenizer.decode(ids[:place])


def test_the_limit_of_a_longrope_model_is_its_original_context_length(tmp_path: Path) -> None:
    model = save(tmp_path / "model", byte_level())
    config = json.loads((model / "config.json").read_text())
    config["rope_parameters"] = {
        "rope_type": "longrope", "rope_theta": 10000.0, "factor": 16.0, "short_factor": [1.0] * 4,
        "long_factor": [4.0] * 4, "original_max_position_embeddings": 64,
    }  # fmt: skip
    (model / "config.json").write_text(json.dumps(config))
    assert with_model_limit(serve_config(model, tmp_path / "cache"), str(model)).engine.max_length == 64
    with pytest.raises(UserError, match=r"takes 64 tokens on engine.name=transformers \(longrope"):
        with_model_limit(serve_config(model, tmp_path / "cache", engine={"max_length": 65}), str(model))


def test_a_token_beyond_the_embeddings_is_refused_at_start(tmp_path: Path) -> None:
    tokenizer = byte_level()
    rows = len(tokenizer)
    tokenizer.add_tokens(["<|pref|>"], special_tokens=True)
    with pytest.raises(UserError, match=r"'<\|pref\|>' has id \d+\): use the model's own tokenizer"):
        start(save(tmp_path, tokenizer, rows=rows))


# --- a tokenizer with byte fallback and Llama-2's template


@pytest.fixture(scope="module")
def fallback(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    root = tmp_path_factory.mktemp("fallback")
    base = save(root / "base", byte_fallback())
    frame = chat_frame(load_tokenizer(str(base)))
    policy = write_policy(root / "policy", base, seed=1, style=PromptStyle(frame=frame))
    plain = write_policy(root / "plain", base, seed=2, style=PromptStyle(frame=Frame()))
    config = serve_config(policy, root / "cache", adapters={"plain": str(plain)}, engine={"max_length": 512})
    with LocalServer(config).running() as server, httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


def chat(client: httpx.Client, **body: Any) -> httpx.Response:
    messages = [{"role": "user", "content": "Shall I go 🙂 at once?"}]
    answer = client.post("/v1/chat/completions", json={"messages": messages, **body})
    assert answer.status_code == 200, answer.text
    return answer


def joined(logprobs: Any) -> str:
    return bytes(byte for token in logprobs["content"] for byte in token["bytes"]).decode(errors="replace")


@pytest.mark.parametrize("model", ["policy", "plain"])
def test_bytes_that_form_no_characters_break_neither_answers_nor_streams(fallback: httpx.Client, model: str) -> None:
    for seed in range(6):
        body = {"model": model, "temperature": 2, "seed": seed, "max_tokens": 40, "n": 4, "logprobs": True}
        choices = chat(fallback, **body).json()["choices"]
        assert [joined(choice["logprobs"]) for choice in choices] == [c["message"]["content"] for c in choices]
        lines = chat(fallback, **body, stream=True).text.split("\n\n")
        assert lines[-2:] == ["data: [DONE]", ""]
        texts = [""] * 4
        for line in lines[:-2]:
            for choice in json.loads(line.removeprefix("data: "))["choices"]:
                texts[choice["index"]] += choice["delta"]["content"]
        assert texts == [choice["message"]["content"] for choice in choices]


@pytest.mark.parametrize("model", ["policy", "plain"])
def test_a_forced_choice_has_the_tokens_that_are_scored(fallback: httpx.Client, model: str) -> None:
    for choice in ("yes", "go on 🙂", "naïve"):
        scores = {"model": model, "scenario": "Shall I go 🙂 at once?", "answers": [choice]}
        (scored,) = fallback.post("/v1/score", json=scores).json()["results"][0]["answers"]
        forced = {"model": model, "structured_outputs": {"choice": [choice]}, "logprobs": True, "max_tokens": 60}
        (answer,) = chat(fallback, **forced).json()["choices"]
        assert (answer["message"]["content"], joined(answer["logprobs"])) == (choice, choice)
        # The score includes the end-of-text token.
        assert len(answer["logprobs"]["content"]) == scored["num_tokens"] - 1
        assert sum(token["logprob"] for token in answer["logprobs"]["content"]) >= scored["logprob"]


def test_text_and_log_probabilities_end_before_a_stop_string(fallback: httpx.Client) -> None:
    body = {"structured_outputs": {"choice": ["The town has a plan"]}, "logprobs": True, "stop": ["n has"]}
    (choice,) = chat(fallback, **body).json()["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("The tow", "stop")
    assert joined(choice["logprobs"]) == "The tow"
    plain = {"prompt": "Answer: ", "logprobs": 2, "max_tokens": 30, "stop": ["n has"]}
    plain["structured_outputs"] = body["structured_outputs"]
    (choice,) = fallback.post("/v1/completions", json=plain).json()["choices"]
    assert choice["text"] == "The tow"
    assert choice["logprobs"]["text_offset"][-1] < len("The tow")


def test_choices_after_a_prompt_of_token_ids_are_those_after_its_text(fallback: httpx.Client) -> None:
    answers = []
    for prompt in ("Answer: ", byte_fallback()("Answer: ")["input_ids"]):
        body = {"prompt": prompt, "structured_outputs": {"choice": ["yes", "no"]}, "temperature": 0, "logprobs": 0}
        answers += fallback.post("/v1/completions", json=body).json()["choices"]
    assert answers[0] == answers[1]
    assert answers[0]["text"] in ("yes", "no")


# --- adapters


KINDS: dict[str, dict[str, Any]] = {
    "use_dora": {"use_dora": True},
    "modules_to_save": {"modules_to_save": ["lm_head"]},
    "bias=lora_only": {"bias": "lora_only"},
    "lora_bias": {"lora_bias": True},
    "trainable_token_indices": {"trainable_token_indices": [5, 6]},
    "init_lora_weights=pissa": {"init_lora_weights": "pissa"},
    "init_lora_weights=pissa_niter_4": {"init_lora_weights": "pissa_niter_4"},
    "init_lora_weights=olora": {"init_lora_weights": "olora"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_that_no_engine_can_batch_is_refused_by_its_kind(
    tiny_qwen2: Path, tmp_path: Path, kind: str
) -> None:
    policy = write_policy(tmp_path / "policy", tiny_qwen2, seed=1)
    base: Any = load_base(str(tiny_qwen2), precision="fp32", gradient_checkpointing=False, device=CPU)
    config = LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM", **KINDS[kind])
    shutil.rmtree(policy / "adapter")
    get_peft_model(base, config).save_pretrained(policy / "adapter")
    with pytest.raises(UserError, match=f"not a plain LoRA adapter .*{kind}"):
        Catalog(serve_config(policy, tmp_path / "cache"), load_tokenizer)
    engine = start(tiny_qwen2)

    async def ask() -> None:
        with pytest.raises(UserError, match=kind):
            await engine.score(random_trees(1), LoadedAdapter("a@000000000000", policy / "adapter"))
        await engine.check()
        await engine.score(random_trees(1), None)
        await engine.close()

    asyncio.run(ask())


def test_an_adapter_with_nan_weights_fails_only_its_own_requests(tiny_qwen2: Path, tmp_path: Path) -> None:
    policies = [write_policy(tmp_path / name, tiny_qwen2, seed=1) for name in ("policy", "damaged")]
    weights = policies[1] / "adapter" / "adapter_model.safetensors"
    save_file({name: torch.full_like(t, float("nan")) for name, t in load_file(weights).items()}, weights)
    ref = policies[1] / "model_ref.json"
    ref.write_text(json.dumps(json.loads(ref.read_text()) | {"adapter_sha256": None}))
    config = serve_config(policies[0], tmp_path / "cache", adapters={"damaged": str(policies[1])})
    with LocalServer(config).running() as server, httpx.Client(base_url=server.url, timeout=60) as client:
        body = {"model": "damaged", "prompt": "The town", "max_tokens": 3}
        assert client.post("/v1/completions", json=body).status_code == 500
        for stream in (False, True):
            answer = client.post("/v1/completions", json={**body, "stream": stream})
            assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
        score = {"model": "damaged", "scenario": "x", "answers": ["a"]}
        assert client.post("/v1/score", json=score).status_code == 500
        assert client.get("/readyz").status_code == 200
        assert client.post("/v1/completions", json={**body, "model": "policy"}).status_code == 200


def test_an_error_while_a_prompt_is_read_fails_only_its_own_request(tiny_qwen2: Path) -> None:
    engine = start(tiny_qwen2)

    async def text(prompt: list[int]) -> int:
        request = GenerationRequest(prompt, Sampling(4, temperature=0))
        return len([step async for step in engine.generate(request, None)])

    async def ask() -> None:
        long = asyncio.create_task(text([5, 6, 7]))
        with pytest.raises(RequestFault, match="see the server"):
            await text([5, 10_000])  # not a token of the model
        assert await long == 4
        await engine.check()
        await engine.close()

    asyncio.run(ask())
