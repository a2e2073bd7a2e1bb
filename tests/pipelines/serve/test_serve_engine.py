"""Tests of the transformers engine: batched requests get the same answers as each request alone."""

import asyncio
import json
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import LlamaConfig, LlamaForCausalLM

from pft_core.encoding.examples import BranchedExample
from pft_core.errors import UserError
from pft_core.evaluation.answers import score_branches
from pft_core.evaluation.steering import SteeringVectors, steered
from pft_core.policies.model import load_base, load_policy
from pft_core.policies.pretrained import load_tokenizer
from pft_core.scoring.scorer import BranchScorer
from pipelines.serve.engines.sampling import nucleus
from pipelines.serve.engines.serving_engine import (
    EngineFault,
    GenerationRequest,
    Grammar,
    RequestFault,
    Sampling,
    Steering,
    Step,
)
from pipelines.serve.engines.transformers_engine import TransformersEngine, TransformersSettings
from pipelines.serve.policies.adapters import LoadedAdapter
from tests.builders import random_trees, tree
from tests.serving import write_policy

CPU = torch.device("cpu")
EOS = 2
GREEDY = Sampling(max_tokens=6, temperature=0, logprobs=2)
PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12, 13], [14]]
VECTORS = SteeringVectors((1,), {"Risk": torch.linspace(-3, 3, 32)[None]}, "words", "base")


@pytest.fixture(scope="module")
def adapters(tiny_qwen2: Path, tmp_path_factory: pytest.TempPathFactory) -> list[LoadedAdapter]:
    root = tmp_path_factory.mktemp("served")
    folders = [write_policy(root / f"{i}", tiny_qwen2, seed=i) / "adapter" for i in range(4)]
    return [LoadedAdapter(f"a{i}@{i:012x}", folder) for i, folder in enumerate(folders)]


@pytest.fixture(scope="module")
def engine(tiny_qwen2: Path) -> Iterator[TransformersEngine]:
    engine = start(tiny_qwen2)
    yield engine
    asyncio.run(engine.close())


def start(base: Path, *, slots: int = 2) -> TransformersEngine:
    return TransformersEngine(TransformersSettings(str(base), "fp32", "cpu", 8, 256, slots, (VECTORS, 1)))


async def collect(engine: Any, prompt: list[int], sampling: Sampling, *, after: float = 0, **how: Any) -> list[Step]:
    await asyncio.sleep(after)
    request = GenerationRequest(prompt, sampling, how.get("steering"))
    return [step async for step in engine.generate(request, how.get("adapter"))]


def token_ids(steps: list[Step]) -> list[int]:
    return [token.id for step in steps for token in step.tokens]


def reference_ids(model: Any, prompt: list[int], count: int) -> list[int]:
    """Return the reference: transformers' own greedy generation of one prompt."""
    ids = torch.tensor([prompt])
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False,
                         pad_token_id=0, eos_token_id=2)  # fmt: skip
    return [int(token) for token in out[0, len(prompt) :] if token != 2]


def test_rows_that_join_and_leave_get_the_same_text_as_alone(
    tiny_qwen2: Path, engine: TransformersEngine, adapters: list[LoadedAdapter]
) -> None:
    async def ask() -> list[list[Step]]:
        jobs = []
        for i, prompt in enumerate(PROMPTS):
            for adapter in (None, adapters[0], adapters[1]):
                sampling = Sampling(max_tokens=3 + 5 * i, temperature=0)
                jobs.append(collect(engine, prompt, sampling, adapter=adapter, after=0.004 * len(jobs)))
        return await asyncio.gather(*jobs)

    answers = iter(asyncio.run(ask()))
    for i, prompt in enumerate(PROMPTS):
        for adapter in (None, adapters[0], adapters[1]):
            folder = None if adapter is None else str(adapter.folder)
            model = load_policy(str(tiny_qwen2), folder, None, precision="fp32", device=CPU)
            assert token_ids(next(answers)) == reference_ids(model, prompt, 3 + 5 * i)


def test_with_length_dependent_positions_a_row_gets_the_same_text_beside_longer_ones(
    tiny_qwen2: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=600, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=16, initializer_range=0.3,
        rope_parameters={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0},
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    load_tokenizer(str(tiny_qwen2)).save_pretrained(tmp_path)
    prompts = [[3 + (i * n) % 500 for i in range(n)] for n in (12, 40, 20, 3)]
    engine = TransformersEngine(TransformersSettings(str(tmp_path), "fp32", "cpu", 8, 256, 2))

    async def all_at_once() -> list[list[Step]]:
        jobs = [collect(engine, prompt, GREEDY, after=0.01 * i) for i, prompt in enumerate(prompts)]
        return await asyncio.gather(*jobs)

    rows = [token_ids(steps) for steps in asyncio.run(all_at_once())]
    asyncio.run(engine.close())
    expected = []
    for prompt in prompts:  # a fresh model for each, because such positions keep state between calls
        expected.append(reference_ids(LlamaForCausalLM.from_pretrained(tmp_path), prompt, 6))
    assert [[token for token in row if token != EOS] for row in rows] == expected


def test_scores_equal_those_of_the_evaluation(
    tiny_qwen2: Path, engine: TransformersEngine, adapters: list[LoadedAdapter]
) -> None:
    trees = random_trees(5)

    async def ask() -> list[list[np.ndarray]]:
        # Meanwhile, a generation with another adapter runs.
        busy = asyncio.create_task(collect(engine, PROMPTS[0], GREEDY, adapter=adapters[1]))
        scores = await asyncio.gather(*(engine.score(trees, adapter) for adapter in (None, *adapters[:3])))
        await busy
        return scores

    for adapter, scores in zip((None, *adapters[:3]), asyncio.run(ask()), strict=True):
        folder = None if adapter is None else str(adapter.folder)
        model = load_policy(str(tiny_qwen2), folder, None, precision="fp32", device=CPU)
        expected = score_branches(trees, scorer=BranchScorer(model), tokens_per_batch=256)
        for actual, wanted in zip(scores, expected, strict=True):
            # The same code and weights, but the batches may be cut differently.
            np.testing.assert_allclose(actual, wanted, atol=1e-4)


def test_log_probabilities_of_generated_tokens_are_the_models(engine: TransformersEngine, tiny_qwen2: Path) -> None:
    steps = asyncio.run(collect(engine, PROMPTS[1], GREEDY))
    model: Any = load_base(str(tiny_qwen2), precision="fp32", gradient_checkpointing=False, device=CPU)
    ids = token_ids(steps)
    with torch.no_grad():
        logits = model(torch.tensor([PROMPTS[1] + ids])).logits[0].log_softmax(-1)
    for place, token in enumerate(token for step in steps for token in step.tokens):
        row = logits[len(PROMPTS[1]) - 1 + place]
        assert token.logprob == pytest.approx(float(row[token.id]), abs=1e-4)
        assert token.top[0] == (int(row.argmax()), pytest.approx(float(row.max()), abs=1e-4))


def test_a_seed_gives_the_same_sample_whatever_else_runs(engine: TransformersEngine) -> None:
    sampling = Sampling(max_tokens=8, temperature=1.0, top_p=0.9, seed=7)

    async def with_others() -> list[list[Step]]:
        return await asyncio.gather(*(collect(engine, PROMPTS[0], sampling) for _ in range(3)),
                                    collect(engine, PROMPTS[1], Sampling(max_tokens=9, temperature=1.0)))  # fmt: skip

    alone = token_ids(asyncio.run(collect(engine, PROMPTS[0], sampling)))
    assert [token_ids(steps) for steps in asyncio.run(with_others())[:3]] == [alone] * 3


def test_the_nucleus_is_the_smallest_set_that_holds_top_p() -> None:
    # 0.5 + 0.3 = 0.8 >= 0.6, but 0.5 < 0.6.
    kept = nucleus(torch.tensor([0.1, 0.5, 0.3, 0.1]), 0.6)
    assert kept.tolist() == pytest.approx([0, 0.5, 0.3, 0])
    assert nucleus(torch.tensor([0.6, 0.4]), 0.1).tolist() == pytest.approx([0.6, 0])


def test_only_the_choices_can_be_generated(engine: TransformersEngine) -> None:
    choices = ((20, 21, 22), (20, 30), (40,))
    seen = {
        tuple(
            token_ids(asyncio.run(collect(engine, PROMPTS[0], Sampling(9, temperature=2.0, seed=s, choices=choices))))
        )
        for s in range(20)
    }
    assert seen <= set(choices)
    assert len(seen) > 1


def test_more_adapters_than_slots_take_turns(
    tiny_qwen2: Path, engine: TransformersEngine, adapters: list[LoadedAdapter]
) -> None:
    async def ask() -> list[list[Step]]:
        return await asyncio.gather(
            *(collect(engine, PROMPTS[0], GREEDY, adapter=adapter) for adapter in [*adapters, *adapters])
        )

    for adapter, steps in zip([*adapters, *adapters], asyncio.run(ask()), strict=True):
        model = load_policy(str(tiny_qwen2), str(adapter.folder), None, precision="fp32", device=CPU)
        assert token_ids(steps) == reference_ids(model, PROMPTS[0], GREEDY.max_tokens)


def test_an_adapter_that_does_not_fit_leaves_the_model_unchanged(tiny_qwen2: Path, tmp_path: Path) -> None:
    broken = write_policy(tmp_path / "broken", tiny_qwen2, seed=1) / "adapter"
    config = (broken / "adapter_config.json").read_text()
    (broken / "adapter_config.json").write_text(config.replace('"r": 4', '"r": 3'))
    engine = start(tiny_qwen2)

    async def ask() -> tuple[list[Step], list[Step]]:
        before = await collect(engine, PROMPTS[0], GREEDY)
        with pytest.raises(UserError, match="does not fit"):
            await collect(engine, PROMPTS[0], GREEDY, adapter=LoadedAdapter("x@0123456789ab", broken))
        with pytest.raises(UserError, match="does not fit"):
            await engine.score(random_trees(1), LoadedAdapter("x@0123456789ab", broken))
        after = await collect(engine, PROMPTS[0], GREEDY)
        await engine.close()
        return before, after

    before, after = asyncio.run(ask())
    assert before == after
    assert not [module for module in engine._model.base.modules() if isinstance(module, BaseTunerLayer)]


def test_a_client_that_leaves_ends_the_generation(engine: TransformersEngine) -> None:
    async def leave() -> None:
        sampling = Sampling(max_tokens=100_000, temperature=1.0, seed=0)
        steps: Any = engine.generate(GenerationRequest(PROMPTS[0], sampling), None)
        await anext(steps)
        (row,) = engine._batch.rows
        await steps.aclose()
        for _ in range(200):
            if not engine._batch.rows:
                assert row.output_ids[-1] != EOS, "the row did not end by itself"
                return
            await asyncio.sleep(0.01)
        raise AssertionError("the row is still in the batch")

    asyncio.run(leave())


def test_steering_adds_its_vector_to_scores_and_to_generated_text(tiny_qwen2: Path, engine: TransformersEngine) -> None:
    trees = random_trees(3)
    steering = Steering("Risk", 2.0)
    scores = asyncio.run(engine.score(trees, None, steering))
    model = load_policy(str(tiny_qwen2), None, None, precision="fp32", device=CPU)
    scorer = BranchScorer(model, backend="separate")
    with steered(scorer, VECTORS.direction("Risk", 1), layer=1, multiplier=2.0):
        expected = score_branches(trees, scorer=scorer, tokens_per_batch=256)
    for actual, wanted in zip(scores, expected, strict=True):
        np.testing.assert_allclose(actual, wanted, atol=1e-4)
    # Scored as an answer, the generated tokens have the log-probabilities that they were generated with.
    steps = asyncio.run(collect(engine, PROMPTS[1], GREEDY, steering=steering))
    plain = asyncio.run(collect(engine, PROMPTS[1], GREEDY))
    assert [token.logprob for step in steps for token in step.tokens] != [
        token.logprob for step in plain for token in step.tokens
    ]
    ids = token_ids(steps)
    (score,) = asyncio.run(engine.score([tree("t", [PROMPTS[1]], [ids], (0,))], None, steering))
    generated = sum(token.logprob or 0.0 for step in steps for token in step.tokens)
    assert float(score[0]) == pytest.approx(generated, abs=1e-3)


def test_an_axis_without_a_steering_vector_is_refused(engine: TransformersEngine) -> None:
    with pytest.raises(UserError, match="no steering vector"):
        asyncio.run(engine.score(random_trees(1), None, Steering("Pace", 1.0)))


def test_a_broken_engine_raises_its_fault_for_every_request(tiny_qwen2: Path) -> None:
    engine = start(tiny_qwen2)

    def explode(*_: Any, **__: Any) -> None:
        raise RuntimeError("out of memory")

    engine._batch.step = explode  # type: ignore[method-assign]

    async def ask() -> None:
        with pytest.raises(EngineFault, match="out of memory"):
            await collect(engine, PROMPTS[0], GREEDY)
        with pytest.raises(EngineFault):
            await engine.check()
        with pytest.raises(EngineFault):
            await engine.score(random_trees(1), None)

    asyncio.run(ask())


# --- effects of one request on others


class FailingMatcher:
    """A matcher that fails at the first token."""

    def masked(self, logits_V: torch.Tensor) -> torch.Tensor:
        raise IndexError("no such state")


def wide_schema(count: int) -> Grammar:
    names = {f"a{i}": {"type": "integer"} for i in range(count)}
    return Grammar("json", json.dumps({"type": "object", "properties": names, "additionalProperties": False}))


@pytest.mark.parametrize(
    ("sampling", "error"),
    [
        (Sampling(9, repetition_penalty=1e-320), RequestFault),  # makes logits infinite
        (Sampling(9, grammar=wide_schema(1500)), UserError),
        (Sampling(9, grammar=Grammar("regex", "fail")), RequestFault),
    ],
)
def test_an_error_at_one_rows_token_fails_only_that_row(
    engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch, sampling: Sampling, error: type[Exception]
) -> None:
    if sampling.grammar is not None and sampling.grammar.text == "fail":
        monkeypatch.setattr(engine._grammars, "matcher", lambda grammar: FailingMatcher())

    async def ask() -> list[Step]:
        other = asyncio.create_task(collect(engine, PROMPTS[1], Sampling(40, temperature=0, ignore_eos=True)))
        await asyncio.sleep(0.01)
        with pytest.raises(error, match="see the server" if error is RequestFault else "JSON schema cannot be enf"):
            await collect(engine, PROMPTS[0], sampling)
        await engine.check()
        return await other

    assert len(token_ids(asyncio.run(ask()))) == 40


def test_a_client_whose_event_loop_ended_does_not_break_the_engine(engine: TransformersEngine) -> None:
    loop = asyncio.new_event_loop()
    steps: Any = engine.generate(GenerationRequest(PROMPTS[0], Sampling(2000, ignore_eos=True)), None)
    loop.run_until_complete(anext(steps))
    loop.close()
    sampling = Sampling(5, temperature=0, ignore_eos=True)
    assert len(token_ids(asyncio.run(collect(engine, PROMPTS[1], sampling)))) == 5
    asyncio.run(engine.check())
    for row in engine._batch.rows:
        row.is_dropped = True


def many_answers(count: int) -> BranchedExample:
    return tree("many", [[5, 6, 7]] * count, [[8 + i % 7, 9, 10 + i % 5, 11, 2] for i in range(count)], [0] * count)


def test_an_example_in_parts_gets_the_same_scores_as_a_whole(tiny_qwen2: Path, engine: TransformersEngine) -> None:
    examples = [many_answers(40), *random_trees(2), many_answers(1)]
    model = load_policy(str(tiny_qwen2), None, None, precision="fp32", device=CPU)
    expected = score_branches(examples, scorer=BranchScorer(model), tokens_per_batch=10_000)
    for actual, each in zip(asyncio.run(engine.score(examples, None)), expected, strict=True):
        np.testing.assert_allclose(actual, each, atol=1e-4)


def record_work(engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch, *, score_s: float = 0) -> list[int]:
    """Record the work of the engine's thread: the number of branches of each scoring, and 0 for each decoding step."""
    work: list[int] = []
    score, step = engine._scores, engine._batch.step

    def scores(examples: Any, *arguments: Any) -> Any:
        time.sleep(score_s)
        work.append(sum(len(example.branches) for example in examples))
        return score(examples, *arguments)

    def one_step() -> None:
        work.append(0)
        step()

    monkeypatch.setattr(engine, "_scores", scores)
    monkeypatch.setattr(engine._batch, "step", one_step)
    return work


def test_generation_continues_while_a_large_request_is_scored(
    engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = record_work(engine, monkeypatch)

    async def ask() -> None:
        text = asyncio.create_task(collect(engine, PROMPTS[0], Sampling(400, ignore_eos=True)))
        await asyncio.sleep(0.02)
        await engine.score([many_answers(60)], None)
        text.cancel()

    asyncio.run(ask())
    parts = [place for place, branches in enumerate(work) if branches]
    assert len(parts) >= 8
    assert all(later - earlier > 1 for earlier, later in pairwise(parts)), "a token is generated between two parts"


def test_scores_for_clients_that_left_are_not_computed(
    engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = record_work(engine, monkeypatch, score_s=0.1)

    async def ask() -> None:
        tasks = [asyncio.create_task(engine.score([many_answers(60 + i)], None)) for i in range(12)]
        await asyncio.sleep(0.05)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await engine.score([many_answers(1)], None)

    asyncio.run(ask())
    assert sum(work) < 200, "of more than 12 * 60 requested"
