"""Measure the cost of serving and its behavior under overload: `python -m benchmarks.serve --json`.

Uses a random model of about 30 million parameters, prompts of 128 tokens, 64 new tokens and no streaming. `raw` is the
same engine with the same settings in this process, driven by the same code; rounds of raw and served alternate, so that
changes in the machine's speed affect both. Requests to the server come from a process of their own, like those of real
clients. Overload: an open loop at ten times the served rate, compared with the latency at exactly the admission limit.
Adapters: 20 adapters at random over 4 slots, compared with one. Prefixes: questions of both poles about the same
scenario, which comes before or after the condition.
"""

import argparse
import asyncio
import random
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import harness
from benchmarks.load import Body, Load, Sample, closed_loop, elsewhere
from pft_core.data import load_space
from pft_core.files import file_sha256
from pft_core.policies import LoraSettings, ModelRef, add_lora, load_base, save_adapter
from pft_core.prompts import PromptStyle, template_digest
from pipelines.serve import GenerationRequest, Sampling, ServeConfig, job, make_host
from pipelines.validated_yaml import build

PROMPT_TOKENS, NEW_TOKENS, IN_FLIGHT, QUEUED = 128, 64, 16, 16
VOCABULARY = 8192
ADAPTERS, SLOTS = 20, 4
SPACE = load_space("toyworld")

RunLoad = Callable[..., Awaitable[Load]]  # takes bodies, and the `how` of benchmarks.load.elsewhere


def make_model(folder: Path) -> Path:
    """Write a random Qwen2 of 31 million parameters with a byte-level tokenizer."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCABULARY, hidden_size=512, intermediate_size=1536, num_hidden_layers=8, num_attention_heads=8,
        num_key_value_heads=4, max_position_embeddings=4096, bos_token_id=1, eos_token_id=2, pad_token_id=0,
        tie_word_embeddings=True,
    )  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    words = [f"{axis.name} {pole.name} {pole.description}" for axis in SPACE.axes for pole in axis.poles]
    special = ["<pad>", "<bos>", "<eos>"]
    # Fill the vocabulary, because the model may generate any of its ids.
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(words * 4, trainer)
    tokenizer.add_tokens([f"<{i}>" for i in range(VOCABULARY - tokenizer.get_vocab_size())])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<pad>"
    ).save_pretrained(folder)
    return folder


def make_policy(folder: Path, base: Path, *, seed: int, style: PromptStyle) -> Path:
    """Write a LoRA policy with random weights."""
    device = torch.device("cpu")
    loaded = load_base(str(base), precision="fp32", gradient_checkpointing=False, device=device)
    model = add_lora(loaded, LoraSettings(r=8, alpha=16, dropout=0.0, target_modules=["q_proj", "v_proj"]), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    state = {
        name: 0.02 * torch.randn(weight.shape, generator=generator)
        for name, weight in model.named_parameters()
        if weight.requires_grad
    }
    save_adapter(model, state, folder / "adapter")
    sha = file_sha256(folder / "adapter" / "adapter_model.safetensors")
    digest = template_digest(style, SPACE)
    ModelRef(str(base), "adapter", None, style, SPACE, (0, 1), digest, "", "", sha).save(folder)
    return folder


def write_everything(folder: Path, *, engine: str) -> ServeConfig:
    base = make_model(folder / "base")
    before, after = PromptStyle("before"), PromptStyle("after")
    policy = make_policy(folder / "policy", base, seed=100, style=before)
    named = {"scenario-first": str(make_policy(folder / "scenario-first", base, seed=100, style=after))}
    for seed in range(ADAPTERS):
        named[f"a{seed}"] = str(make_policy(folder / f"a{seed}", base, seed=seed, style=before))
    raw = {
        "policy": str(policy),
        "adapters": named,
        "store": {"cache": str(folder / "cache")},
        "engine": {"name": engine, "max_length": 1024, "max_batch": IN_FLIGHT, "max_loaded_adapters": SLOTS,
                   "max_adapter_rank": 8, "precision": "fp32"},
        "scaling": {"max_ongoing_requests": IN_FLIGHT, "max_queued_requests": QUEUED},
        "port": 0,
    }  # fmt: skip
    return job.with_port(build(ServeConfig, raw))


def prompts(count: int, *, seed: int) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(3, VOCABULARY) for _ in range(PROMPT_TOKENS)] for _ in range(count)]


def bodies(count: int, *, seed: int, models: Sequence[str] = ("base",)) -> list[Body]:
    rng = random.Random(seed)
    how = {"max_tokens": NEW_TOKENS, "temperature": 0}
    return [{"model": rng.choice(models), "prompt": ids, **how} for ids in prompts(count, seed=seed)]


class EngineAlone:
    """The engine in this process, called as the server calls it, but without HTTP, Ray and adapters."""

    def __init__(self, config: ServeConfig, model: str):
        self.host = make_host(config, model, "", lora=True)

    async def __call__(self, body: Body) -> Sample:
        started = time.perf_counter()
        sampling = Sampling(max_tokens=body["max_tokens"], temperature=body["temperature"])
        request = GenerationRequest(body["prompt"], sampling, stream=False)
        steps = [step async for step in self.host.generate(request, None)]
        num_tokens = sum(len(step.tokens) for step in steps)
        return Sample(200 if steps else 0, time.perf_counter() - started, content=num_tokens)


async def measure(
    config: ServeConfig, raw: EngineAlone, *, requests: int, rounds: int, overload_s: float
) -> dict[str, Any]:
    url = f"http://{config.host}:{config.port}"
    served = partial(elsewhere, url, "/v1/completions")
    raws, serveds = [], []
    for number in range(rounds + 1):  # the first round warms up both
        requests_sent = bodies(requests if number else IN_FLIGHT, seed=number)
        pair = (
            await closed_loop(raw, requests_sent, in_flight=IN_FLIGHT),
            await served(requests_sent, in_flight=IN_FLIGHT),
        )
        if number:
            raws.append(pair[0])
            serveds.append(pair[1])
            harness.say(f"raw {pair[0].per_second:.2f}, served {pair[1].per_second:.2f} requests per second")
    await raw.host.engine.close()
    seconds = [value for load in serveds for value in load.of(200)]
    whole = Load([Sample(200, value) for value in seconds])
    result = {
        "vs_raw": round(statistics.median(s.per_second / r.per_second for r, s in zip(raws, serveds, strict=True)), 4),
        "raw_per_s": round(statistics.median(load.per_second for load in raws), 3),
        "served_per_s": round(statistics.median(load.per_second for load in serveds), 3),
        "p50_ms": round(whole.ms(0.5), 1),
        "p99_ms": round(whole.ms(0.99), 1),
    }
    result |= await overload(served, result["served_per_s"], seconds=overload_s)
    result |= await adapters(served, requests=requests)
    result |= await prefixes(partial(elsewhere, url, "/v1/chat/completions"))
    return result


async def overload(served: RunLoad, capacity_per_s: float, *, seconds: float) -> dict[str, Any]:
    """Measure the latency at ten times the capacity, and at exactly the admission limit."""
    limit = IN_FLIGHT + QUEUED
    at_limit = await served(bodies(4 * limit, seed=50), in_flight=limit)
    beyond = await served(bodies(200, seed=51), per_second=10 * capacity_per_s, seconds=seconds)
    harness.say(f"at the limit {at_limit.statuses}, beyond it {beyond.statuses}")
    return {
        "at_limit_p99_ms": round(at_limit.ms(0.99), 1),
        "at_limit_429": at_limit.statuses.get(429, 0),
        "overload_p99_ms": round(beyond.ms(0.99), 1),
        "overload_p99_ratio": round(beyond.ms(0.99) / at_limit.ms(0.99), 3),
        "overload_sent": len(beyond.samples),
        "overload_admitted": len(beyond.of(200)),
        "rejected_429": len(beyond.of(429)),
        "overload_other": {str(k): v for k, v in beyond.statuses.items() if k not in (200, 429)},
        "rejected_p50_ms": round(beyond.ms(0.5, 429), 1) if beyond.of(429) else None,
        "rejected_p99_ms": round(beyond.ms(0.99, 429), 1) if beyond.of(429) else None,
    }


async def adapters(served: RunLoad, *, requests: int) -> dict[str, Any]:
    """Measure the rate with one adapter for all requests, with 4 that fit the slots, and with 20 at random."""
    names = [f"a{seed}" for seed in range(ADAPTERS)]
    result = {}
    for key, models in (("one", names[:1]), ("fitting", names[:SLOTS]), ("mixed", names)):
        load = await served(bodies(requests, seed=60, models=models), in_flight=IN_FLIGHT)
        assert load.statuses == {200: requests}, load.statuses
        result[f"adapters_{key}_per_s"] = round(load.per_second, 3)
    return result


async def prefixes(served: RunLoad) -> dict[str, Any]:
    """Ask both poles about each of several long scenarios, with the condition before the scenario and after it."""
    result: dict[str, Any] = {}
    times, rates = {}, {}
    for key, model in (("preference_first", "policy"), ("scenario_first", "scenario-first")):
        rng, words = random.Random(7), ["plan", "job", "town", "river", "boat", "week"]
        scenarios = [" ".join(rng.choice(words) for _ in range(150)) for _ in range(16)]
        requests_sent = [
            {"model": model, "messages": [{"role": "user", "content": text}], "preference": pole.name,
             "max_tokens": 1, "temperature": 0}
            for text in scenarios for axis in SPACE.axes for pole in axis.poles
        ]  # fmt: skip
        load = await served(requests_sent, in_flight=4)
        assert load.statuses == {200: len(requests_sent)}, load.statuses
        usages = [sample.content["usage"] for sample in load.samples]
        cached = sum(usage["prompt_tokens_details"]["cached_tokens"] for usage in usages)
        rates[key] = cached / sum(usage["prompt_tokens"] for usage in usages)
        times[key] = load.seconds
    result["prefix_hit_rate"] = round(rates["scenario_first"], 4)
    result["prefix_hit_rate_preference_first"] = round(rates["preference_first"], 4)
    result["prefix_speedup"] = round(times["preference_first"] / times["scenario_first"], 3)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="Print one JSON object as the last line of stdout.")
    parser.add_argument("--engine", choices=("auto", "vllm", "transformers"), default="auto", help="Engine to measure.")
    parser.add_argument("--requests", type=int, default=48, help="Number of requests per round.")
    parser.add_argument("--rounds", type=int, default=5, help="Number of measured rounds.")
    parser.add_argument("--overload-s", type=float, default=15.0, help="Seconds of overload.")
    arguments = parser.parse_args()
    from pipelines.serve import build as build_app
    from pipelines.serve import engine_name

    with tempfile.TemporaryDirectory(prefix="pft-serve-") as scratch:
        config = write_everything(Path(scratch), engine=arguments.engine)
        job.start_ray()
        job.deploy(config, build_app(config.model_dump()))
        try:
            raw = EngineAlone(config, str(Path(scratch) / "base"))
            how = {"requests": arguments.requests, "rounds": arguments.rounds, "overload_s": arguments.overload_s}
            result = asyncio.run(measure(config, raw, **how))
        finally:
            job.shut_down()
    engine = engine_name(config)
    harness.finish({"engine": engine, **result, **harness.machine()}, as_json=arguments.json)


if __name__ == "__main__":
    main()
