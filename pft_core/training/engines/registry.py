"""Training engines by the names that a config uses. A new one is a class that keeps `Engine`, and an entry here."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pft_core.registry import Registry, refuse_no_code


@dataclass(frozen=True)
class EngineEntry:
    """What a config knows of an engine before its code is loaded.

    build: a function of (scorer, EngineSettings, OptimizerSettings, device=) that returns the Engine, or its place as
    "package.module:name". has_whole_gradients: whether every rank can see the gradients of all trained weights.
    """

    build: str | Callable[..., Any]
    has_whole_gradients: bool = False

    def __post_init__(self) -> None:
        refuse_no_code("build", self.build)


ENGINES: Registry[EngineEntry] = Registry("engine", EngineEntry)

ENGINES.add("torch", EngineEntry("pft_core.training.engines.torch_engine:TorchEngine", has_whole_gradients=True))
ENGINES.add("deepspeed", EngineEntry("pft_core.training.engines.deepspeed_engine:DeepSpeedEngine"))
