"""Engines by the names that a config uses."""

import torch

from pft_core.scoring import BranchScorer
from pft_core.training.engines.engine import Engine, EngineSettings
from pft_core.training.engines.torch_engine import TorchEngine


def build_engine(scorer: BranchScorer, settings: EngineSettings, *, device: torch.device) -> Engine:
    """Move the scorer to the device, in training mode, and wrap it in the engine that the settings name."""
    if settings.name == "torch":
        return TorchEngine(scorer, settings, device=device)
    from pft_core.training.engines.deepspeed_engine import DeepSpeedEngine

    return DeepSpeedEngine(scorer, settings, device=device)
