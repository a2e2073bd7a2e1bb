"""The shared-prefix backends give the same results as running every branch alone."""

import os
from collections.abc import Callable

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from pft_core.encoding.batching import BranchedBatch, collate, empty_example
from pft_core.encoding.examples import BranchedExample
from pft_core.encoding.joining import joined
from pft_core.errors import UserError
from pft_core.policies.model import add_lora
from pft_core.policies.settings import LoraSettings
from pft_core.scoring.scorer import BranchScorer
from pft_core.scoring.tree_decoder import why_no_trees
from tests.builders import random_trees, tree

MODELS = {
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, Qwen2RMSNorm),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, Qwen3RMSNorm),
    "llama": (LlamaConfig, LlamaForCausalLM, LlamaRMSNorm),
}
# CPU unless PFT_TEST_DEVICE=cuda: the same equalities hold on both.
DEVICE = "cuda" if os.environ.get("PFT_TEST_DEVICE") == "cuda" else "cpu"
BACKENDS = ["split"] if DEVICE == "cpu" else ["split", "flex"]  # torch has no backward for flex on CPU


def small_model(kind: str, *, dtype: torch.dtype, **changes):
    config_class, model_class, _ = MODELS[kind]
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = config_class(vocab_size=600, num_hidden_layers=3, initializer_range=0.15, **sizes, **changes)
    return model_class(config).to(dtype).to(DEVICE)


@pytest.fixture
def exact_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace RMSNorms by ones in the model's own precision: the stock ones round to float32 internally."""

    def forward(self, hidden):
        return self.weight * hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)

    for _, _, norm in MODELS.values():
        monkeypatch.setattr(norm, "forward", forward)


def ids(rng: np.random.Generator, count: int) -> list[int]:
    return [int(t) for t in rng.integers(3, 600, count)]


def bushes() -> list[BranchedExample]:
    """Return trees of one to five branches, some without context, some with long and some with short answers."""
    rng = np.random.default_rng(1)
    trees = []
    for count in (1, 2, 3, 4, 5):
        prefix = ids(rng, 2 + 3 * count)
        prompts = [prefix + ids(rng, b % 3) for b in range(count)]
        trees.append(tree(f"bush-{count}", prompts, [ids(rng, 1 + 2 * b) for b in range(count)], range(count)))
    return trees


def three_levels(count: int) -> list[BranchedExample]:
    """Return trees of one to three stems, each with one to three branches; prompts and answers have unequal lengths."""
    rng = np.random.default_rng(2)
    trees = []
    for i in range(count):
        scenario, questions = ids(rng, 2 + 5 * i), []
        for size in range(1, 2 + i % 3):
            prompt = scenario + ids(rng, 2 * size)
            questions.append(tree("", [prompt] * size, [ids(rng, 1 + b) for b in range(size)], range(size)))
        trees.append(joined(questions))
    return trees


def alike(*conditions: list[int]) -> BranchedExample:
    """Return a tree of one stem for each condition, with two options of equal lengths."""
    return joined([tree("", [[*condition, 6]] * 2, [[3, 4], [7, 8]]) for condition in conditions])


CASES: dict[str, Callable[[], list[BranchedExample]]] = {
    "pairs of unequal lengths": lambda: random_trees(5),
    "pairs of equal lengths": lambda: [tree(str(i), [[5, i, 9], [5, i, 8]], [[3, 4], [6, 7]]) for i in range(3)],
    "one to five branches": bushes,
    "an empty prefix": lambda: [tree("none", [[5, 6], [7, 6]], [[8, 3], [9]]), *random_trees(2)],
    "only empty prefixes": lambda: [tree("none", [[5, 6], [7, 6]], [[8, 3], [9]])],
    "prompts that differ in their last token": lambda: [tree("last", [[5, 6, 7], [5, 6, 8]], [[9, 10], [9, 10]])],
    "prefixes that differ in their last token": lambda: [
        tree("a", [[5, 6, 7]] * 2, [[9], [10]]),
        tree("b", [[5, 6, 8]] * 2, [[9], [10]]),
    ],
    "a prefix of one token": lambda: [tree("one", [[5], [5]], [[9, 10, 11], [9]])],
    "three levels": lambda: three_levels(4),
    "three levels of equal lengths": lambda: [alike([5, 6, 9], [5, 6, 10])] * 2,
    "three levels without a shared start": lambda: [alike([9], [10], [11])],
    "two and three levels": lambda: [*random_trees(2), *three_levels(4), *bushes()],
    "no labels": lambda: [empty_example()],
}


def loss_and_gradient(model, batch: BranchedBatch, backend: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return log-probabilities [R] and the flat gradient of a loss that weights each branch differently."""
    model.zero_grad()
    logps = BranchScorer(model, backend=backend)(batch)
    (logps * torch.linspace(0.5, 1.5, len(logps), dtype=logps.dtype, device=logps.device)).sum().backward()
    return logps.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])


def assert_equal_to_separate(model, batch: BranchedBatch, backend: str, *, limit: float) -> None:
    want, want_gradient = loss_and_gradient(model, batch, "separate")
    got, gradient = loss_and_gradient(model, batch, backend)
    assert ((got - want).abs().max() / want.abs().max().clamp(min=1)).item() <= limit
    # Without labels the right side is 0, so the gradient must be exactly zero.
    assert (gradient - want_gradient).norm().item() <= limit * want_gradient.norm().item()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", MODELS)
def test_loss_and_gradient_equal_separate_in_float64(kind: str, case: str, exact_norms) -> None:
    # Only `split`: FlexAttention keeps its row sums in float32 regardless of the model's precision.
    model = small_model(kind, dtype=torch.float64)
    assert_equal_to_separate(model, collate(CASES[case]()).to(DEVICE), "split", limit=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", MODELS)
def test_loss_and_gradient_equal_separate_in_float32(kind: str, backend: str) -> None:
    model = small_model(kind, dtype=torch.float32)
    trees = [*random_trees(6), *bushes(), *three_levels(4)]
    assert_equal_to_separate(model, collate(trees).to(DEVICE), backend, limit=1e-5)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_adapters_get_the_same_gradient(checkpointing: bool, exact_norms) -> None:
    model = small_model("qwen2", dtype=torch.float64)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    adapted = add_lora(model, LoraSettings(r=4, alpha=8, dropout=0.0, target_modules="all-linear"), seed=0)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    adapted.double().train()
    assert_equal_to_separate(adapted, collate(random_trees(5)).to(DEVICE), "split", limit=1e-12)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_scores_equal_separate(kind: str) -> None:
    model = small_model(kind, dtype=torch.float32)
    batch = collate([*random_trees(4), *bushes(), *three_levels(4)]).to(DEVICE)
    with torch.no_grad():
        want = BranchScorer(model, backend="separate")(batch)
        assert torch.allclose(BranchScorer(model, backend="flex")(batch), want, rtol=1e-5, atol=0)


def test_branches_do_not_see_each_other_or_other_examples() -> None:
    model = small_model("qwen3", dtype=torch.float32)
    scorer = BranchScorer(model, backend="split")
    trees = random_trees(3)
    changed = [trees[0], tree("other", [[4, 5], [4, 6]], [[7, 8, 9], [10]]), trees[2]]
    sibling = tree(trees[0].id, [[5, 6], [5, 7]], [[8, 9], [11]])
    other_sibling = tree(trees[0].id, [[5, 6], [5, 30]], [[8, 9], [12]])
    with torch.no_grad():
        first, second = (scorer(collate(trees_).to(DEVICE)) for trees_ in (trees, changed))
        assert torch.allclose(first[[0, 1, 4, 5]], second[[0, 1, 4, 5]], rtol=1e-6)  # other shapes round differently
        first, second = (scorer(collate([tree_]).to(DEVICE)) for tree_ in (sibling, other_sibling))
        assert first[0] == second[0]


def test_plain_model_calls_are_unchanged() -> None:
    model = small_model("llama", dtype=torch.float32).eval()
    rows = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]], device=DEVICE)
    padded = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]], device=DEVICE)
    with torch.no_grad():
        before = model(input_ids=rows, attention_mask=padded).logits
        BranchScorer(model, backend="split")(collate(random_trees(2)).to(DEVICE))
        assert torch.equal(model(input_ids=rows, attention_mask=padded).logits, before)


def test_an_unknown_architecture_runs_separate_and_logs_why(caplog: pytest.LogCaptureFixture) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=600, n_embd=32, n_layer=1, n_head=2))
    assert BranchScorer(model).backend == "separate"
    assert len([r for r in caplog.records if r.name == "pft_core.scoring.scorer"]) == 1
    assert "gpt2" in caplog.text
    with pytest.raises(
        UserError, match="attention_backend='split': model type 'gpt2' is not among llama, qwen2, qwen3"
    ):
        BranchScorer(model, backend="split")


def test_models_with_sliding_windows_do_not_share_prefixes() -> None:
    windowed = Qwen2Config(num_hidden_layers=2, use_sliding_window=True, sliding_window=8, max_window_layers=1)
    assert why_no_trees(windowed) == "this qwen2 has layers of type sliding_attention"
    assert why_no_trees(Qwen2Config(num_hidden_layers=2)) is None
