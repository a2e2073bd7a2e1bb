"""Registry of serving engines by their names in recipes. To add one, write a build function and add an entry here."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pft_core.registry import Registry, refuse_no_code

AUTO = "auto"  # the first installed engine that supports what the recipe asks for


@dataclass(frozen=True)
class ServingEngineEntry:
    """A serving engine's description, which is read without loading the engine's code.

    build: a function of (ServeConfig, model, template_digest=, lora=) that returns a ServingEngine, or its import path
    as "package.module:name". package: the package that has to be installed. install: the error message if it is not.
    steers: whether the engine can add a vector to the outputs of layers. why_not: the reason to report if it cannot.
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
        "pipelines.serve.engines.engine_builders:vllm_engine",
        package="vllm",
        install="vLLM is not installed: `make setup-vllm`",
        why_not="vLLM cannot add a vector to its layers' outputs",
    ),
)
SERVING_ENGINES.add(
    "transformers",
    ServingEngineEntry(
        "pipelines.serve.engines.engine_builders:transformers_engine",
        package="transformers",
        install="transformers is not installed: `pip install transformers`",
        steers=True,
    ),
)
