from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, GPT2Model, LlamaConfig, LlamaForCausalLM

from pft_core.encoding.batching import collate, empty_example
from pft_core.encoding.examples import BranchedExample
from pft_core.encoding.joining import joined
from pft_core.errors import UserError
from pft_core.scoring.scorer import BranchScorer, refuse_scaled_logits
from tests.builders import random_trees, tree


@pytest.fixture(params=["tiny_qwen2", "tiny_llama"])
def model(request):
    return AutoModelForCausalLM.from_pretrained(request.getfixturevalue(request.param), dtype=torch.float64)


def reference_logps(model, example: BranchedExample) -> list[float]:
    """Return what the scorer must equal: one branch at a time, full logits, no batch."""
    rows = []
    for branch in example.branches:
        ids = torch.tensor([[*example.prefix_ids.tolist(), *branch.input_ids.tolist()]])
        logps = model(input_ids=ids).logits.double().log_softmax(-1)[0]
        start = len(example.prefix_ids)
        labels = [start + i for i, is_label in enumerate(branch.label_mask) if is_label]
        rows.append(sum(logps[i - 1, ids[0, i]].item() for i in labels))
    return rows


def test_scores_equal_one_branch_at_a_time(model) -> None:
    examples = [*random_trees(4), tree("empty prefix", [[5, 6], [7, 6]], [[8], [9, 10]])]
    with torch.no_grad():
        scored = BranchScorer(model)(collate(examples))
        want = torch.tensor([v for e in examples for v in reference_logps(model, e)])
    # The weights are float64 but RMSNorm computes in float32, and rounds by up to 1e-5.
    assert torch.allclose(scored.double(), want.double(), atol=1e-5)


@pytest.mark.parametrize("backend", ["split", "separate"])
def test_a_tree_of_three_levels_scores_as_one_branch_at_a_time(model, backend) -> None:
    questions = [tree("q", [[*range(9, 30), c, c + 1]] * 3, [[7], [8, 9], [c]], range(3)) for c in (40, 50)]
    pair = random_trees(1)[0]
    with torch.no_grad():
        scored = BranchScorer(model, backend=backend)(collate([pair, joined(questions)]))
        want = torch.tensor([v for example in (pair, *questions) for v in reference_logps(model, example)])
    assert torch.allclose(scored.double(), want.double(), atol=1e-5)


def test_options_of_other_conditions_cannot_be_seen(model) -> None:
    def scores(other: list[int], answer: list[int]) -> torch.Tensor:
        first, second = tree("q", [[5, 6, 7, 8]] * 2, [[9, 10], [11]]), tree("q", [[5, 6, *other]] * 2, [answer, [11]])
        return BranchScorer(model)(collate([joined([first, second])]))[:2]

    with torch.no_grad():
        assert torch.equal(scores([30, 31], [32]), scores([40, 41], [42]))


def test_branches_cannot_see_each_other(model) -> None:
    scorer = BranchScorer(model)
    first = tree("x", [[5, 6], [5, 7]], [[8, 9], [10, 11]])
    other = tree("x", [[5, 6], [5, 7]], [[8, 9], [12, 13]])
    with torch.no_grad():
        assert scorer(collate([first]))[0] == scorer(collate([other]))[0]


def test_an_answer_right_after_the_shared_prefix_is_predicted_by_its_last_token(model) -> None:
    example = tree("x", [[5, 6], [5, 6]], [[8], [9]])
    with torch.no_grad():
        want = reference_logps(model, example)
        assert BranchScorer(model)(collate([example])).tolist() == pytest.approx(want, abs=1e-5)


def test_a_bin_without_labels_scores_zero_and_gives_every_weight_a_zero_gradient(model) -> None:
    scorer = BranchScorer(model)
    logps = scorer(collate([empty_example()]))
    logps.sum().backward()
    assert logps.tolist() == [0.0, 0.0]
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


def test_architectures_that_change_logits_are_refused() -> None:
    with pytest.raises(UserError, match="final_logit_softcapping"):
        refuse_scaled_logits(SimpleNamespace(model_type="gemma2", final_logit_softcapping=30.0))


def test_a_model_that_changes_its_heads_logits_is_refused_whatever_its_config_says() -> None:
    config = GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=20, attn_pdrop=0.1)
    BranchScorer(GPT2LMHeadModel(config))

    class Scaled(GPT2LMHeadModel):
        def forward(self, **inputs):
            out = super().forward(**inputs)
            out.logits = 1.01 * out.logits
            return out

    with pytest.raises(UserError, match="model type 'gpt2' computes its logits in a way that is not supported"):
        BranchScorer(Scaled(config))


ROPES = {
    "dynamic": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0},
    "longrope": {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 4,
        "long_factor": [4.0] * 4,
        "original_max_position_embeddings": 16,
        "factor": 4.0,
    },
}


def length_following_llama(rope: str, *, limit: int = 16) -> LlamaForCausalLM:
    """Return a random Llama whose positional encoding changes for texts of more than 16 tokens."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=600, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=limit, rope_parameters=ROPES[rope], initializer_range=0.3,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@pytest.mark.parametrize("rope", ROPES)
def test_scores_do_not_depend_on_longer_texts_beside_or_before_them(rope) -> None:
    lengths = (6, 40, 12, 25, 18, 40, 3)
    examples = [
        tree(f"{n}", [[3 + (i * n) % 500 for i in range(n)], [4 + (i * i) % 500 for i in range(n + 3)]], [[5, 6], [7]])
        for n in lengths
    ]
    model = length_following_llama(rope)
    scorer = BranchScorer(model)
    with torch.no_grad():
        together = scorer(collate(examples))
        again = torch.cat([scorer(collate([example])) for example in examples])
        # A fresh model for each branch, so that no earlier call can have changed its positions.
        want = [
            value
            for example in examples
            for branch in example.branches
            for value in reference_logps(length_following_llama(rope), replace(example, branches=(branch,)))
        ]
    assert not scorer.shares_prefix
    assert torch.allclose(together, again, atol=1e-4)
    assert together.tolist() == pytest.approx(want, abs=1e-4)
    with pytest.raises(UserError, match="'split': its positional encoding follows the length of a text"):
        BranchScorer(model, backend="split")


def test_a_model_that_scores_a_text_differently_next_to_a_longer_one_is_refused() -> None:
    config = GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=20)

    class BatchDependent(GPT2Model):
        def forward(self, input_ids, **inputs):
            out = super().forward(input_ids, **inputs)
            out.last_hidden_state = out.last_hidden_state + 0.1 * (input_ids.shape[1] > 16)
            return out

    model = GPT2LMHeadModel(config)
    torch.nn.init.normal_(model.transformer.wte.weight)
    model.transformer.__class__ = BatchDependent
    with pytest.raises(UserError, match=r"'gpt2' scores a text differently next to a longer one .* than alone"):
        BranchScorer(model)


def test_a_model_without_sdpa_attention_runs_separate_and_logs_why(tiny_qwen2, caplog) -> None:
    eager = AutoModelForCausalLM.from_pretrained(tiny_qwen2, attn_implementation="eager")
    assert not BranchScorer(eager).shares_prefix
    assert "its attention is 'eager', not 'sdpa'" in caplog.text
    with pytest.raises(UserError, match="attention_backend='split': its attention is 'eager'"):
        BranchScorer(eager, backend="split")


def test_flex_refuses_training_on_cpu_and_attention_dropout(tiny_qwen2) -> None:
    scorer = BranchScorer(AutoModelForCausalLM.from_pretrained(tiny_qwen2), backend="flex")
    with pytest.raises(UserError, match="'flex' trains on CUDA only"):
        scorer(collate([tree("x", [[5, 6], [5, 7]], [[8], [9]])]))
    dropping = AutoModelForCausalLM.from_pretrained(tiny_qwen2, attention_dropout=0.1)
    with pytest.raises(UserError, match="'flex' has no attention dropout"):
        BranchScorer(dropping, backend="flex")
