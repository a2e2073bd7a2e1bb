"""Tests of the vLLM engine against the transformers engine and BranchScorer, on one tiny model in float32."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

pytest.importorskip("vllm")

from pft_core.encoding.examples import BranchedExample
from pft_core.errors import UserError
from pft_core.evaluation.answers import score_branches
from pft_core.policies.model import add_lora, load_base, save_adapter, with_adapter
from pft_core.policies.settings import LoraSettings
from pft_core.scoring.scorer import BranchScorer
from pipelines.serve.engines.serving_engine import (
    GenerationRequest,
    Grammar,
    Sampling,
    ServingEngine,
    Steering,
    Step,
    Token,
)
from pipelines.serve.engines.transformers_engine import TransformersEngine, TransformersSettings
from pipelines.serve.engines.vllm_engine import VllmEngine, VllmSettings, next_tokens
from pipelines.serve.policies.adapters import LoadedAdapter
from tests.builders import random_trees, tree
from tests.serving import wide_base

pytestmark = pytest.mark.vllm

CPU = torch.device("cpu")
EOS = 2
# Per log-probability: float32 sums in a different order. Measured: 4e-6 on sums of 9 labels.
TOLERANCE = 1e-3
GREEDY = Sampling(max_tokens=12, temperature=0, logprobs=3)
PROMPT = [int(token) for token in np.random.default_rng(7).integers(3, 600, 100)]
CHOICES = ((40, 41, 42), (40, 41, 50, 51), (40, 41), (60, 61, 62))
LONG_CHOICES = tuple((30, 31, 32, 33, letter, 34) for letter in (40, 41, 42))
Scores = list[NDArray[np.float32]]

T = TypeVar("T")


@dataclass(frozen=True)
class VllmFixture:
    """The engine under test with its own event loop, its model, and adapters."""

    engine: VllmEngine
    loop: asyncio.AbstractEventLoop
    model: Path
    adapters: list[LoadedAdapter]

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(asyncio.wait_for(work, timeout=60))


@pytest.fixture(scope="module")
def model(tiny_qwen2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wide_base(tmp_path_factory.mktemp("heads_of_32") / "model", tiny_qwen2)


def write_adapter(model: Path, folder: Path, seed: int, *, rank: int = 4) -> LoadedAdapter:
    """Write an adapter that looks trained: B is not zero."""
    base = load_base(str(model), precision="fp32", gradient_checkpointing=False, device=CPU)
    policy = add_lora(
        base,
        LoraSettings(r=rank, alpha=2 * rank, dropout=0.0, target_modules=["q_proj", "v_proj", "down_proj"]),
        seed=seed,
    )
    generator = torch.Generator().manual_seed(seed)
    trained = {name: weight for name, weight in policy.named_parameters() if weight.requires_grad}
    weights = {name: torch.randn(weight.shape, generator=generator) * 0.2 for name, weight in trained.items()}
    save_adapter(policy, weights, folder)
    return LoadedAdapter(f"{folder.name}@{seed:012d}", folder)


def settings(model: Path) -> VllmSettings:
    """Return settings with two adapter slots, so that three adapters have to take turns."""
    return VllmSettings(str(model), "fp32", 512, 8, 2, 8, gpu_memory=0.5, cpu_cache_gib=1, threads=1, enable_lora=True)


@pytest.fixture(scope="module")
def served(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmFixture]:
    root = tmp_path_factory.mktemp("adapters")
    adapters = [write_adapter(model, root / f"a{seed}", seed) for seed in range(3)]
    loop = asyncio.new_event_loop()
    engine = VllmEngine(settings(model))
    yield VllmFixture(engine, loop, model, adapters)
    loop.run_until_complete(engine.close())
    loop.close()


@pytest.fixture(scope="module")
def sibling(served: VllmFixture) -> Iterator[TransformersEngine]:
    engine = TransformersEngine(TransformersSettings(str(served.model), "fp32", "cpu", 8, 4096, 3))
    yield engine
    served.run(engine.close())


def expected(served: VllmFixture, examples: Sequence[BranchedExample], adapter: LoadedAdapter | None) -> Scores:
    """Return the scores of the code that trains and evaluates."""
    policy: Any = load_base(str(served.model), precision="fp32", gradient_checkpointing=False, device=CPU)
    if adapter is not None:
        policy = with_adapter(policy, adapter.folder)
    return score_branches(examples, scorer=BranchScorer(policy.eval()), tokens_per_batch=4096)


def assert_close(scores: Scores, wanted: Scores) -> None:
    assert len(scores) == len(wanted)
    for actual, each in zip(scores, wanted, strict=True):
        assert actual.dtype == np.float32
        np.testing.assert_allclose(actual, each, rtol=0, atol=TOLERANCE)


def max_difference(first: Scores, second: Scores) -> float:
    return max(float(np.abs(a - b).max()) for a, b in zip(first, second, strict=True))


async def collect(steps: AsyncIterator[Step]) -> list[Step]:
    return [step async for step in steps]


def tokens_of(steps: Sequence[Step]) -> list[Token]:
    """Return the tokens of all steps; a step that is fetched late has several tokens."""
    return [token for step in steps for token in step.tokens]


def ids(steps: Sequence[Step]) -> list[int]:
    return [token.id for token in tokens_of(steps)]


def logprobs(steps: Sequence[Step]) -> list[float]:
    return [token.logprob or 0.0 for token in tokens_of(steps)]


def write(
    served: VllmFixture,
    engine: ServingEngine,
    prompt: Sequence[int],
    sampling: Sampling,
    adapter: LoadedAdapter | None = None,
) -> list[Step]:
    return served.run(collect(engine.generate(GenerationRequest(prompt, sampling), adapter)))


def answers(prefix: Sequence[int], choices: Sequence[Sequence[int]]) -> BranchedExample:
    """Return choices after a prompt, each ended by EOS, as an example."""
    return tree("question", [prefix] * len(choices), [[*choice, EOS] for choice in choices], range(len(choices)))


@pytest.mark.parametrize("adapted", [False, True])
def test_scores_equal_those_of_the_branch_scorer(served: VllmFixture, adapted: bool) -> None:
    adapter = served.adapters[0] if adapted else None
    examples = [*random_trees(4), answers(PROMPT, CHOICES)]
    assert_close(served.run(served.engine.score(examples, adapter)), expected(served, examples, adapter))


def test_a_branch_without_labels_scores_zero_and_a_prefix_may_be_empty(served: VllmFixture) -> None:
    unlabeled = tree("unlabeled", [[5, 6, 7], [5, 6, 8]], [[], [9]])
    without_prefix = tree("without prefix", [[5, 6], [7, 8]], [[9, 10], [11]])
    nothing = tree("nothing", [[5, 6, 7], [5, 6, 8]], [[], []])
    assert len(without_prefix.prefix_ids) == 0
    scores = served.run(served.engine.score([unlabeled, without_prefix, nothing], None))
    assert scores[0][0] == 0
    assert scores[2].tolist() == [0, 0]
    assert_close(scores[:2], expected(served, [unlabeled, without_prefix], None))


def test_cached_labels_get_the_same_scores_again(served: VllmFixture) -> None:
    """Blocks end before, inside and after the answers' shared prefix, and inside the rest of the answers."""
    examples = [answers(PROMPT[5 : 5 + length], LONG_CHOICES) for length in range(55, 66)]
    wanted = expected(served, examples, None)
    for _ in range(3):
        assert_close(served.run(served.engine.score(examples, None)), wanted)


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU each label is requested by itself")
def test_on_a_cpu_answers_are_read_whole_to_save_reading_the_end_of_the_prompt_again(served: VllmFixture) -> None:
    """Blocks have 16 or 32 tokens, so each request reads 10 or 26 of the prompt's 90 tokens again."""
    example = answers(PROMPT[:90], LONG_CHOICES)  # no label ends at the end of a block
    requests = served.engine._request_numbers
    before = next(requests)
    served.run(served.engine.score([example], None))
    num_requests = next(requests) - before - 1
    assert num_requests <= 1 + len(LONG_CHOICES) < len({c[:i] for c in LONG_CHOICES for i in range(len(c) + 1)})


def test_adapters_and_the_base_do_not_mix_in_one_batch(served: VllmFixture) -> None:
    examples = random_trees(3, seed=1)
    policies = [served.adapters[0], served.adapters[1], None]

    async def at_once() -> list[Scores]:
        return await asyncio.gather(*(served.engine.score(examples, policy) for policy in policies))

    scores = served.run(at_once())
    for policy, actual in zip(policies, scores, strict=True):
        assert_close(actual, expected(served, examples, policy))
    assert min(max_difference(scores[0], scores[1]), max_difference(scores[0], scores[2])) > 100 * TOLERANCE


def test_more_adapters_than_slots_take_turns(served: VllmFixture) -> None:
    examples = random_trees(2, seed=2)
    wanted = [expected(served, examples, adapter) for adapter in served.adapters]

    async def two_rounds() -> list[Scores]:
        return await asyncio.gather(*(served.engine.score(examples, adapter) for adapter in served.adapters * 2))

    for actual, each in zip(served.run(two_rounds()), wanted * 2, strict=True):
        assert_close(actual, each)


@pytest.mark.parametrize("adapted", [False, True])
def test_greedy_text_equals_that_of_the_transformers_engine(
    served: VllmFixture, sibling: TransformersEngine, adapted: bool
) -> None:
    adapter = served.adapters[1] if adapted else None
    steps, wanted = (write(served, engine, PROMPT, GREEDY, adapter) for engine in (served.engine, sibling))
    assert ids(steps) == ids(wanted)
    assert steps[-1].finish_reason == wanted[-1].finish_reason == "length"
    for token, want in zip(tokens_of(steps), tokens_of(wanted), strict=True):
        assert token.logprob == pytest.approx(want.logprob, abs=TOLERANCE)
        assert [id for id, _ in token.top] == [id for id, _ in want.top]
        assert [logp for _, logp in token.top] == pytest.approx([logp for _, logp in want.top], abs=TOLERANCE)


def test_text_ends_with_eos_which_is_not_returned(served: VllmFixture) -> None:
    """At temperature 2 the 600 tokens are almost equally likely, so about 4 of 8 texts of 300 tokens meet EOS."""

    async def texts() -> list[list[Step]]:
        hot = [Sampling(max_tokens=300, temperature=2, seed=seed) for seed in range(8)]
        return await asyncio.gather(
            *(collect(served.engine.generate(GenerationRequest(PROMPT, each), None)) for each in hot)
        )

    texts_steps = served.run(texts())
    reasons = [steps[-1].finish_reason for steps in texts_steps]
    assert set(reasons) == {"stop", "length"}
    for steps, reason in zip(texts_steps, reasons, strict=True):
        assert EOS not in ids(steps)
        assert (len(ids(steps)) == 300) == (reason == "length")
        assert [step.finish_reason for step in steps[:-1]] == [None] * (len(steps) - 1)


SAMPLING_SETTINGS = {
    "repetition": {"repetition_penalty": 1.7},
    "presence": {"presence_penalty": 1.5},
    "frequency": {"frequency_penalty": -1.0},
    "min_tokens": {"min_tokens": 40},
    "ignore_eos": {"ignore_eos": True},
    "top_k": {"temperature": 2.0, "top_k": 1, "seed": 1},
    "min_p": {"temperature": 2.0, "min_p": 1.0, "seed": 1},
}


@pytest.mark.parametrize("name", SAMPLING_SETTINGS)
def test_sampling_settings_mean_the_same_on_both_engines(
    served: VllmFixture, sibling: TransformersEngine, name: str
) -> None:
    sampling = replace(Sampling(max_tokens=40, temperature=0, logprobs=2), **SAMPLING_SETTINGS[name])
    for prompt in (PROMPT[:20], PROMPT[30:34]):
        ours, theirs = (write(served, engine, prompt, sampling) for engine in (served.engine, sibling))
        assert ids(ours) == ids(theirs)
        assert ours[-1].finish_reason == theirs[-1].finish_reason


FILTERS = {
    "top_k": {"top_k": 3},
    "min_p": {"min_p": 0.7},
    "top_p": {"top_p": 0.01},
    "top_k and top_p": {"top_k": 4, "top_p": 0.7, "temperature": 0.5},
    "after penalties": {"top_k": 3, "repetition_penalty": 1.7, "presence_penalty": 1.0, "min_p": 0.1},
}


@pytest.mark.parametrize("name", FILTERS)
def test_the_tokens_that_can_be_sampled_are_the_same_on_both_engines(
    served: VllmFixture, sibling: TransformersEngine, name: str
) -> None:
    """Only a few of the 600 tokens remain, so that 40 samples contain each of them."""

    async def sampled(engine: ServingEngine) -> set[int]:
        each = [replace(Sampling(1, seed=seed, temperature=2.0), **FILTERS[name]) for seed in range(40)]  # type: ignore[arg-type]
        requests = (collect(engine.generate(GenerationRequest(PROMPT[:20], one), None)) for one in each)
        return {ids(steps)[0] for steps in await asyncio.gather(*requests)}

    ours, theirs = (served.run(sampled(engine)) for engine in (served.engine, sibling))
    assert ours == theirs
    assert 1 < len(ours) < 12


@pytest.mark.parametrize("max_tokens", [0, 3])
def test_a_prompt_has_the_same_log_probabilities_on_both_engines(
    served: VllmFixture, sibling: TransformersEngine, max_tokens: int
) -> None:
    sampling = Sampling(max_tokens, temperature=0, logprobs=2, prompt_logprobs=2)
    prompt = PROMPT * 4  # more than either reads at once
    texts = [write(served, engine, prompt, sampling) for engine in (served.engine, sibling)]
    ours, theirs = (steps[0].prompt for steps in texts)
    assert [token.id for token in ours] == [token.id for token in theirs] == prompt
    assert ours[0].logprob is theirs[0].logprob is None
    np.testing.assert_allclose([t.logprob for t in ours[1:]], [t.logprob for t in theirs[1:]], atol=TOLERANCE)
    assert [[id for id, _ in token.top] for token in ours] == [[id for id, _ in token.top] for token in theirs]
    assert [len(ids(steps)) for steps in texts] == [max_tokens] * 2


GRAMMARS = {
    "json": Grammar("json", '{"type": "object", "properties": {"a": {"enum": ["x", "y"]}}, "required": ["a"]}'),
    "regex": Grammar("regex", "[a-f]{4}-[0-9]{3}"),
}


@pytest.mark.parametrize("name", GRAMMARS)
def test_an_answer_under_a_grammar_is_the_same_on_both_engines(
    served: VllmFixture, sibling: TransformersEngine, name: str
) -> None:
    sampling = Sampling(max_tokens=60, temperature=0, logprobs=3, grammar=GRAMMARS[name])
    ours, theirs = (write(served, engine, PROMPT[:20], sampling) for engine in (served.engine, sibling))
    assert ids(ours) == ids(theirs)
    np.testing.assert_allclose(logprobs(ours), logprobs(theirs), atol=TOLERANCE)
    assert ours[-1].finish_reason == theirs[-1].finish_reason


@pytest.mark.parametrize("grammar", [Grammar("json", '{"type": "nothing"}'), Grammar("regex", "((")])
def test_an_invalid_grammar_is_refused_and_the_engine_continues(served: VllmFixture, grammar: Grammar) -> None:
    with pytest.raises(UserError):
        write(served, served.engine, PROMPT[:20], Sampling(4, grammar=grammar))
    assert write(served, served.engine, PROMPT[:20], GREEDY)


def test_a_grammar_that_grows_too_large_is_a_user_error_on_both_engines(
    served: VllmFixture, sibling: TransformersEngine
) -> None:
    names = {f"a{i}": {"type": "integer"} for i in range(1500)}
    grammar = Grammar("json", json.dumps({"type": "object", "properties": names, "additionalProperties": False}))
    for engine in (served.engine, sibling):
        with pytest.raises(UserError, match=r"cannot be enforced|too large to be enforced"):
            write(served, engine, PROMPT[:20], Sampling(60, temperature=0, grammar=grammar))
        assert write(served, engine, PROMPT[:20], GREEDY)


def test_the_same_seed_gives_the_same_text(served: VllmFixture) -> None:
    texts = [ids(write(served, served.engine, PROMPT, Sampling(20, seed=seed))) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_scoring_does_not_change_the_log_probabilities_of_texts_in_the_same_batch(served: VllmFixture) -> None:
    alone = write(served, served.engine, PROMPT, GREEDY)

    async def during_scoring() -> list[Step]:
        scoring = asyncio.gather(*(served.engine.score(random_trees(4, seed=seed), None) for seed in range(4)))
        steps = await collect(served.engine.generate(GenerationRequest(PROMPT, GREEDY), None))
        await scoring
        return steps

    for token, other in zip(tokens_of(alone), tokens_of(served.run(during_scoring())), strict=True):
        assert dict(token.top) == pytest.approx(dict(other.top), abs=TOLERANCE)


@pytest.mark.parametrize("logprobs", [None, 2])
def test_only_choices_are_generated_whatever_the_temperature(served: VllmFixture, logprobs: int | None) -> None:
    async def sample() -> list[list[Step]]:
        hot = [Sampling(10, temperature=2, seed=seed, logprobs=logprobs, choices=CHOICES) for seed in range(24)]
        return await asyncio.gather(
            *(collect(served.engine.generate(GenerationRequest(PROMPT, each), None)) for each in hot)
        )

    samples = served.run(sample())
    assert {tuple(ids(steps)) for steps in samples} == set(CHOICES)
    assert {steps[-1].finish_reason for steps in samples} == {"stop"}


def test_a_choice_has_the_log_probabilities_of_the_unconstrained_model(
    served: VllmFixture, sibling: TransformersEngine
) -> None:
    sampling = Sampling(10, temperature=0, logprobs=2, choices=CHOICES)
    steps, wanted = (write(served, engine, PROMPT, sampling) for engine in (served.engine, sibling))
    assert ids(steps) == ids(wanted)
    for token, want in zip(tokens_of(steps), tokens_of(wanted), strict=True):
        assert token.logprob == pytest.approx(want.logprob, abs=TOLERANCE)
        assert dict(token.top) == pytest.approx(dict(want.top), abs=TOLERANCE)
        assert token.logprob < -1  # under the mask it would be nearly certain


def test_a_truncated_choice_ends_with_length(served: VllmFixture) -> None:
    steps = write(served, served.engine, PROMPT, Sampling(1, choices=CHOICES[:1]))
    assert (ids(steps), steps[-1].finish_reason) == ([40], "length")


def test_the_next_tokens_are_those_of_matching_choices_and_eos_after_a_complete_one() -> None:
    assert next_tokens(CHOICES, [], EOS) == [40, 60]
    assert next_tokens(CHOICES, [40, 41], EOS) == [EOS, 42, 50]
    assert next_tokens(CHOICES, [60, 61, 62], EOS) == [EOS]


def test_a_repeated_prompt_is_read_from_the_cache_of_its_policy(served: VllmFixture) -> None:
    """Blocks have 16 or 32 tokens, and the last token is always read, so 96 of 100 tokens are cached."""
    prompt = [int(token) for token in np.random.default_rng(8).integers(3, 600, 100)]
    runs = [write(served, served.engine, prompt, Sampling(3), adapter) for adapter in (None, None, served.adapters[0])]
    assert [steps[0].cached_tokens for steps in runs] == [0, 96, 0]
    assert {step.cached_tokens for steps in runs for step in steps[1:]} <= {0}
    steps = write(served, served.engine, prompt, Sampling(5, choices=CHOICES))
    assert [step.cached_tokens for step in steps] == [96] + [0] * (len(steps) - 1)


def assert_alive(served: VllmFixture) -> None:
    examples = random_trees(1)
    assert_close(
        served.run(served.engine.score(examples, served.adapters[0])), expected(served, examples, served.adapters[0])
    )
    served.run(served.engine.check())


def test_an_adapter_of_too_high_a_rank_is_refused_and_the_engine_continues(served: VllmFixture, tmp_path: Path) -> None:
    adapter = write_adapter(served.model, tmp_path / "wide", 9, rank=16)
    with pytest.raises(UserError, match=r"rank 16, engine\.max_adapter_rank is 8"):
        served.run(served.engine.score(random_trees(1), adapter))
    assert_alive(served)


def cut_file(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:500])


def change_tensors(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        file = folder / "adapter_model.safetensors"
        save_file(change(load_file(file)), file)

    return apply


BROKEN = {
    "cut": cut_file,
    "empty": change_tensors(lambda tensors: {}),
    "half": change_tensors(lambda tensors: {name: t for name, t in tensors.items() if "layers.0" in name}),
    "narrow": change_tensors(lambda tensors: {name: t[:, :2].contiguous() for name, t in tensors.items()}),
    "unknown to vLLM": lambda folder: change_config(folder, alora_invocation_tokens=[5]),
}


def change_config(folder: Path, **changes: Any) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_adapter_is_refused_and_the_engine_continues(served: VllmFixture, tmp_path: Path, fault: str) -> None:
    folder = shutil.copytree(served.adapters[0].folder, tmp_path / "broken")
    BROKEN[fault](folder)
    adapter = LoadedAdapter(f"broken-{list(BROKEN).index(fault)}@000000000000", folder)
    with pytest.raises(UserError, match=adapter.id) as refused:
        served.run(served.engine.score(random_trees(1), adapter))
    assert str(tmp_path) not in str(refused.value), "the message goes to clients"
    assert_alive(served)


def test_steering_is_refused_with_a_reason(served: VllmFixture) -> None:
    steering = Steering("Risk", 1.0)
    with pytest.raises(UserError, match="need the transformers engine"):
        served.run(served.engine.score(random_trees(1), None, steering))
    with pytest.raises(UserError, match="need the transformers engine"):
        served.run(collect(served.engine.generate(GenerationRequest(PROMPT, GREEDY, steering), None)))


def test_prompts_beyond_max_length_are_refused(served: VllmFixture) -> None:
    long = PROMPT * 6
    with pytest.raises(UserError, match=r"601 tokens exceed engine\.max_length=512"):
        served.run(collect(served.engine.generate(GenerationRequest(long, GREEDY), None)))
    with pytest.raises(UserError, match=r"602 tokens exceed engine\.max_length=512"):
        served.run(served.engine.score([answers(long, [[5], [6]])], None))


def test_a_text_and_a_score_may_reach_max_length(served: VllmFixture) -> None:
    prompt = (PROMPT * 6)[:510]
    assert len(ids(write(served, served.engine, prompt, Sampling(20, temperature=0)))) == 2
    examples = [answers(prompt, [[5], [6]])]
    assert_close(served.run(served.engine.score(examples, None)), expected(served, examples, None))


def test_a_dropped_request_is_removed_from_the_engine(served: VllmFixture) -> None:
    async def drop() -> int:
        steps = served.engine.generate(GenerationRequest(PROMPT, Sampling(max_tokens=400)), None)
        await anext(steps)
        await steps.aclose()
        return served.engine._engine.get_num_unfinished_requests()

    assert served.run(drop()) == 0


PROCESS = """
import asyncio, json, multiprocessing, os, signal, sys
from pipelines.serve.engines.serving_engine import EngineFault, GenerationRequest, Sampling
from pipelines.serve.engines.vllm_engine import VllmEngine, VllmSettings

async def after_its_death(engine, pid):
    os.kill(pid, signal.SIGKILL)
    for attempt in range(100):
        try:
            await engine.check()
        except EngineFault:
            break
        await asyncio.sleep(0.1)
    try:
        [step async for step in engine.generate(GenerationRequest([5, 6], Sampling(1)), None)]
    except EngineFault as fault:
        print("fault", fault, flush=True)

if __name__ == "__main__":
    engine = VllmEngine(VllmSettings(**json.loads(sys.argv[1])))
    [child] = multiprocessing.active_children()
    print("pid", child.pid, flush=True)
    if sys.stdin.readline():
        asyncio.run(after_its_death(engine, child.pid))
"""


def start(model: Path) -> tuple[subprocess.Popen[str], int]:
    """Return a process that runs an engine, and the id of the engine's own process."""
    command = [sys.executable, "-c", PROCESS, json.dumps(asdict(settings(model)))]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("pid "):
            return process, int(line.split()[1])
    raise AssertionError("the engine did not start")


@pytest.mark.slow
@pytest.mark.chaos
def test_the_engines_process_ends_when_ours_is_killed(model: Path) -> None:
    process, engine_pid = start(model)
    process.send_signal(signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{engine_pid}").exists():
        assert time.monotonic() < deadline, os.kill(engine_pid, signal.SIGKILL)
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.chaos
def test_a_dead_engine_raises_an_engine_fault(model: Path) -> None:
    process, _ = start(model)
    output, _ = process.communicate("kill it\n", timeout=60)
    assert "fault vLLM's process ended" in output
