"""Which architecture runs with which feature, and how sure that is: each tested cell names its test."""

import ast
from collections.abc import Iterable, Mapping
from functools import cache
from types import SimpleNamespace

from benchmarks.house import ROOT
from docs.generators.markdown import code, page, table
from docs.generators.source_text import parsed
from pft_core.policies.positions import POSITIONS
from pft_core.scoring.tree_decoder import SUPPORTED_MODEL_TYPES, why_no_trees

FEATURES = {
    "sharing": "Sharing (`split`)",
    "flex": "Sharing (`flex`)",
    "lora": "LoRA",
    "full": "Full fine-tuning",
    "zero": "ZeRO 0 to 3",
    "soup": "Soup",
    "steering": "Steering",
    "transformers": "Serving with transformers",
    "vllm": "Serving with vLLM",
}
TRAINED = ("lora", "full", "zero")  # the start of a training checks any model in the same way
CHECKED, REFUSED, NOT_RUN = "checked at start", "refused", "not run"

# A config of each kind beside the supported types, with what decides whether its branches share a prefix.
OTHERS: Mapping[str, tuple[str, SimpleNamespace]] = {
    "gpt2": ("`gpt2`", SimpleNamespace(model_type="gpt2")),
    "longrope": ("longrope or dynamic NTK", SimpleNamespace(model_type="llama")),
    "sliding": (
        "sliding window, in some layers",
        SimpleNamespace(model_type="qwen2", layer_types=["full_attention", "sliding_attention"]),
    ),
    "other": ("any other causal language model", SimpleNamespace(model_type="other")),
}
SCORING, ATTENTION = "pft_core/scoring/test_scoring.py", "pft_core/scoring/test_attention.py"
MODEL, SERVED = "pft_core/policies/test_model.py", "pipelines/serve/test_serve_model_kinds.py"
SOUP, STEERING = "pft_core/policies/test_soup.py", "pft_core/evaluation/test_steering.py"
EQUAL = f"{ATTENTION}::test_loss_and_gradient_equal_separate_in_float64"
FLEX = f"{ATTENTION}::test_flex_scores_equal_separate"
ADAPTER = f"{MODEL}::test_a_saved_adapter_scores_like_the_trained_one"
WEIGHTS = f"{MODEL}::test_a_saved_full_model_scores_like_the_trained_one"
FOLLOWS = f"{SCORING}::test_scores_do_not_depend_on_longer_texts_beside_or_before_them"
TESTS: Mapping[tuple[str, str], str] = {
    ("llama", "sharing"): EQUAL,
    ("llama", "flex"): FLEX,
    ("llama", "lora"): ADAPTER,
    ("llama", "full"): WEIGHTS,
    ("llama", "transformers"): f"{SERVED}::test_a_forced_choice_has_the_tokens_that_are_scored",
    ("qwen2", "sharing"): EQUAL,
    ("qwen2", "flex"): FLEX,
    ("qwen2", "lora"): ADAPTER,
    ("qwen2", "full"): WEIGHTS,
    ("qwen2", "zero"): "pft_core/training/test_engine.py::test_deepspeed_equals_torch",
    (
        "qwen2",
        "soup",
    ): f"{SOUP}::test_a_soup_of_adapters_scores_like_the_base_with_the_sum_added",
    (
        "qwen2",
        "steering",
    ): f"{STEERING}::test_the_vector_is_added_from_the_last_prompt_token_on",
    ("qwen2", "transformers"): "pipelines/serve/test_serve_engine.py::test_scores_equal_those_of_the_evaluation",
    ("qwen2", "vllm"): "pipelines/serve/test_serve_vllm.py::test_scores_equal_those_of_the_branch_scorer",
    ("qwen3", "sharing"): EQUAL,
    ("qwen3", "flex"): FLEX,
    ("gpt2", "sharing"): f"{ATTENTION}::test_an_unknown_architecture_runs_separate_and_logs_why",
    ("gpt2", "lora"): f"{MODEL}::test_an_adapter_on_gpt2s_own_type_of_linear_layer_can_be_reloaded",
    ("longrope", "sharing"): FOLLOWS,
    ("longrope", "transformers"): f"{SERVED}::test_the_limit_of_a_longrope_model_is_its_original_context_length",
    ("sliding", "sharing"): f"{ATTENTION}::test_models_with_sliding_windows_do_not_share_prefixes",
}
# Covered in part only, and said so.
PARTLY: Mapping[tuple[str, str], tuple[str, str]] = {
    ("llama", "zero"): (
        "stage 3 tested",
        "pipelines/train/test_train.py::test_zero_3_on_two_workers_trains_a_llama_and_validates",
    ),
}
REFUSALS = (
    (
        "scales or caps its logits after the head",
        "at start: a score would miss the change",
        f"{SCORING}::test_architectures_that_change_logits_are_refused",
    ),
    (
        "computes its logits in another way than its head",
        "at start",
        f"{SCORING}::test_a_model_that_changes_its_heads_logits_is_refused_whatever_its_config_says",
    ),
    (
        "scores a text differently next to a longer one (batch-dependent scores)",
        "at start",
        f"{SCORING}::test_a_model_that_scores_a_text_differently_next_to_a_longer_one_is_refused",
    ),
    (
        "keeps a cache other than keys and values (Mamba, hybrids)",
        "when a server with `engine.name=transformers` starts",
        f"{SERVED}::test_a_model_whose_cache_is_not_plain_keys_and_values_is_refused_at_start",
    ),
    (
        "names its own code (`auto_map`)",
        "at start; the code never runs",
        f"{MODEL}::test_remote_code_is_refused_and_never_run",
    ),
    (
        f"has a table of positions ({', '.join(map(code, POSITIONS))})",
        "not refused: a pair or item longer than the table is left out and counted",
        "pipelines/encode/test_ensure_layer.py::test_pairs_beyond_a_models_learned_positions_are_left_out",
    ),
)


def architectures() -> str:
    """Return the table of architectures and features, its tests, and the models that are refused."""
    numbers = {test: number for number, test in enumerate(dict.fromkeys(tests()), 1)}
    kinds = {name: code(name) for name in SUPPORTED_MODEL_TYPES} | {name: shown for name, (shown, _) in OTHERS.items()}
    refusals = [(what, when, code(f"tests/{existing(test)}")) for what, when, test in REFUSALS]
    rows = [(shown, *(cell(kind, feature, numbers) for feature in FEATURES)) for kind, shown in kinds.items()]
    return page(
        "*Tested*: the test of that number runs the combination with a tiny model on a CPU. *Checked at start*: no "
        "test runs it; a start checks logits, batches and (for serving) caches, and refuses a model that fails. "
        "*Refused*: `split` and `flex` end with a message, and `auto` runs each branch alone, with a warning. *Not "
        "run*: neither a test nor a check covers it.",
        table(("`model_type`", *FEATURES.values()), rows),
        "\n".join(f"{number}. {code(f'tests/{existing(test)}')}" for test, number in numbers.items()),
        "### Models that are refused or limited",
        table(("A model that", "Refused", "Test"), refusals),
    )


def tests() -> Iterable[str]:
    return [*TESTS.values(), *(test for _, test in PARTLY.values())]


def cell(kind: str, feature: str, numbers: Mapping[str, int]) -> str:
    """Return what is known of a feature with an architecture, and the number of the test that shows it."""
    if (kind, feature) in PARTLY:
        said, test = PARTLY[kind, feature]
        return f"{said} ({numbers[test]}), others {CHECKED}"
    test = TESTS.get((kind, feature), "")
    if feature in ("sharing", "flex") and not shares(kind):
        said = REFUSED
    elif test:
        said = "tested"
    else:
        said = CHECKED if feature in (*TRAINED, "transformers") else NOT_RUN
    return f"{said} ({numbers[test]})" if test else said


def shares(kind: str) -> bool:
    """Return whether branches may share a prefix, by the code's own rule, and by positions that follow the length."""
    return kind in SUPPORTED_MODEL_TYPES or (kind != "longrope" and why_no_trees(OTHERS[kind][1]) is None)


def existing(test: str) -> str:
    """Return the name of a test. Raises LookupError if its file does not hold it."""
    path, _, name = test.partition("::")
    if name not in test_names(path):
        raise LookupError(f"{test}: no such test: name another in docs/generators/architectures.py")
    return test


@cache
def test_names(path: str) -> frozenset[str]:
    tree = parsed(ROOT / "tests" / path)
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
