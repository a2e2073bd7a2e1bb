"""From what a recipe says of the engine to the engine itself."""

import torch

from pft_core.registry import load_code
from pft_core.scoring import BranchScorer
from pft_core.training.engines.engine import Engine
from pft_core.training.engines.settings import EngineSettings, OptimizerSettings


def build_engine(
    scorer: BranchScorer, settings: EngineSettings, optimizer: OptimizerSettings, *, device: torch.device
) -> Engine:
    """Move the scorer to the device, in training mode, and wrap it in the engine that the settings name."""
    engine: Engine = load_code(settings.entry.build)(scorer, settings, optimizer, device=device)
    return engine
