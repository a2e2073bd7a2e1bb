"""Serving engines by the names that a recipe uses. A new one is a function that builds it, and an entry here."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pft_core.registry import Registry, refuse_no_code

AUTO = "auto"  # the first engine that is installed and can do what the recipe asks for


@dataclass(frozen=True)
class ServingEngineEntry:
    """What a recipe knows of an engine before its code is loaded.

    build: a function of (ServeConfig, model, template_digest=, lora=) that returns the Engine, or its place as
    "package.module:name". package: what has to be installed; install: how. steers: whether it can add a vector to the
    outputs of layers; why_not: said where it cannot.
    """

    build: str | Callable[..., Any]
    package: str
    install: str
    steers: bool = False
    why_not: str = ""

    def __post_init__(self) -> None:
        refuse_no_code("build", self.build)

    @property
    def is_installed(self) -> bool:
        return importlib.util.find_spec(self.package) is not None


SERVING_ENGINES: Registry[ServingEngineEntry] = Registry("serving engine", ServingEngineEntry)

SERVING_ENGINES.add(
    "vllm",
    ServingEngineEntry(
        "pipelines.serve.engines.build:vllm_engine",
        package="vllm",
        install="vLLM is not installed: `make setup-vllm`",
        why_not="vLLM gives no way to add a vector to its layers' outputs",
    ),
)
SERVING_ENGINES.add(
    "transformers",
    ServingEngineEntry(
        "pipelines.serve.engines.build:transformers_engine",
        package="transformers",
        install="transformers is not installed: `pip install transformers`",
        steers=True,
    ),
)
