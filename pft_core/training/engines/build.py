"""Build an engine from a recipe's settings."""

import torch

from pft_core.registry import load_code
from pft_core.scoring import BranchScorer
from pft_core.training.engines.engine import Engine
from pft_core.training.engines.settings import EngineSettings, OptimizerSettings


def build_engine(
    scorer: BranchScorer, settings: EngineSettings, optimizer: OptimizerSettings, *, device: torch.device
) -> Engine:
    """Move the scorer to the device, set it to training mode, and wrap it in the engine named in the settings."""
    engine: Engine = load_code(settings.entry.build)(scorer, settings, optimizer, device=device)
    return engine
