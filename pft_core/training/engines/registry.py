"""Registry of training engines by config name. To add one, write a class that implements `Engine` and an entry here."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pft_core.registry import Registry, refuse_no_code


@dataclass(frozen=True)
class EngineEntry:
    """The facts about an engine that are known without loading its code.

    build: a function of (scorer, EngineSettings, OptimizerSettings, device=) that returns the Engine, or its import
    path as "package.module:name". has_whole_gradients: whether every rank holds the gradients of all trained weights.
    """

    build: str | Callable[..., Any]
    has_whole_gradients: bool = False

    def __post_init__(self) -> None:
        refuse_no_code("build", self.build)


ENGINES: Registry[EngineEntry] = Registry("engine", EngineEntry)

ENGINES.add("torch", EngineEntry("pft_core.training.engines.torch_engine:TorchEngine", has_whole_gradients=True))
ENGINES.add("deepspeed", EngineEntry("pft_core.training.engines.deepspeed_engine:DeepSpeedEngine"))
