"""The demonstrations that `pft quickstart` runs; no heavy imports, as the command line reads them."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class ReportedPolicy:
    """A policy in the report, and its training objective (None: the base model). share: of the recipe's steps."""

    name: str
    objective: str | None
    share: float = 1.0


@dataclass(frozen=True)
class Demo:
    """A demonstration: its folder, its policies, and the test splits of its recipe's embedded data.

    tests: each split with the name of its part of the report, empty for the only one. minutes: estimated, by precision,
    on two quiet CPU cores. yardsticks: shown beside the policies.
    """

    name: str
    recipe: str
    title: str
    note: str
    policies: tuple[ReportedPolicy, ...]
    tests: Mapping[str, str]
    minutes: Mapping[str, int]
    yardsticks: tuple[str, ...] = ()


TINY = Demo(
    "quickstart",
    "quickstart",
    "PFT quickstart: one policy for both sides of a value conflict",
    "Tiny model on generated data: these numbers show that the pipeline works, not how well a real policy does.",
    (ReportedPolicy("base", None), ReportedPolicy("sft:first", "one_sided:first"), ReportedPolicy("pft", "pft")),
    {"test": ""},
    {"bf16": 2, "fp32": 2},
)
REAL = Demo(
    "quickstart-real",
    "dilemmas_smollm2-135m_lora",
    "PFT on SmolLM2-135M: one policy for both sides of four everyday dilemmas",
    "A small pretrained model, one seed, 128 plain items and 128 twins. Twins are two scenarios with the same options "
    "and opposite answers, so whoever goes by the options alone is right on half of them. sft:first is trained on one "
    "side, for half of the steps of pft.",
    (
        ReportedPolicy("base", None),
        ReportedPolicy("sft:first", "one_sided:first", share=0.5),
        ReportedPolicy("pft", "pft"),
    ),
    {"test": "plain", "twins": "twins"},
    {"bf16": 25, "fp32": 35},
    yardsticks=("bag_of_words", "condition_words"),
)
