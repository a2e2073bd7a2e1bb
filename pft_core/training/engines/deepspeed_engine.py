"""DeepSpeedEngine: ZeRO stages 0-3 behind the Engine protocol, on CPU (gloo) and CUDA (NCCL).

DeepSpeed averages gradients over ranks, so the loss is multiplied by the number of ranks. It never scales by an
accumulation count, because the number of bins varies from step to step. Its clipping equals torch's up to rounding.
"""

import logging
import os
import warnings
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor

from pft_core.encoding import BranchedBatch
from pft_core.lazy import absent
from pft_core.scoring import BranchScorer
from pft_core.training.engines.engine import AdamWEngine, NonFiniteError, clip_gradients
from pft_core.training.engines.settings import EngineSettings, OptimizerSettings
from pft_core.training.ranks import num_ranks, this_rank

log = logging.getLogger(__name__)


class DeepSpeedEngine(AdamWEngine):
    """DeepSpeed at ZeRO stage 0 (replicas), 1 (partitioned optimizer state), 2 (gradients too) or 3 (weights too,
    including frozen ones)."""

    def __init__(
        self, scorer: BranchScorer, settings: EngineSettings, optimizer: OptimizerSettings, *, device: torch.device
    ):
        super().__init__(scorer, settings, optimizer, device=device)
        deepspeed = _prepared_deepspeed(device)
        self._config = deepspeed_config(settings, optimizer, trained=list(self.trained.values()), scorer=scorer)
        self._engine, *_ = deepspeed.initialize(model=scorer, optimizer=self.adamw, config=self._config)
        self._gathered = deepspeed.zero.GatheredParameters

    def __call__(self, batch: BranchedBatch) -> Tensor:
        logps: Tensor = self._engine(batch)
        return logps

    def backward(self, loss: Tensor, *, is_last: bool) -> None:
        """Add the gradient of the loss times the number of ranks, which DeepSpeed then averages over ranks."""
        self._watch(loss)
        self._engine.set_gradient_accumulation_boundary(is_last)
        self._engine.backward(loss * num_ranks(), scale_wrt_gas=False)

    def _update(self) -> float:
        if self.settings.zero_stage == 0:
            # Without ZeRO, DeepSpeed neither reports nor checks the norm; gradients are already summed here.
            norm = clip_gradients(self.trained.values(), self.optimizer.max_grad_norm)
            self._engine.step()
            return norm
        self._engine.step()
        if not self._engine.was_step_applied():
            raise NonFiniteError("a gradient is not finite; this update changed no weight")
        return float(self._engine.get_global_grad_norm())

    def _partitions(self) -> list[Tensor]:
        if self.settings.zero_stage == 0:
            return list(self.trained.values())
        name = "fp32_partitioned_groups_flat" if self.settings.zero_stage == 3 else "single_partition_of_fp32_groups"
        return list(getattr(self._engine.optimizer, name))

    def _publish(self) -> None:
        zero = self._engine.optimizer
        if self.settings.zero_stage in (1, 2):
            zero.update_lp_params()
        elif self.settings.zero_stage == 3:
            # Drop the gathered weights, so that the next forward gathers the new ones.
            zero.checkpoint_event_prologue()
            for i in range(len(self._partitions())):
                zero._reassign_or_swap_out_partitioned_parameters(i)

    def gathered_state(self) -> dict[str, Tensor]:
        """Return the full trained weights on rank 0, and {} on other ranks; gathers them under ZeRO-3."""
        if self.settings.zero_stage < 3:
            return super().gathered_state()
        state = {}
        for name, weight in self.trained.items():
            with self._gathered([weight]):
                if this_rank() == 0:
                    state[name] = weight.detach().cpu().clone()
        return state


def deepspeed_config(
    settings: EngineSettings, optimizer: OptimizerSettings, *, trained: list[Any], scorer: BranchScorer
) -> dict[str, Any]:
    """Derive DeepSpeed's JSON config. Its batch sizes are placeholders: `backward(is_last=True)` ends a step."""
    num_trained = sum(w.numel() for w in trained)
    zero: dict[str, Any] = {
        "stage": settings.zero_stage,
        # The default bucket of 5e8 elements would reserve 2 GB for an adapter of a few million weights.
        "reduce_bucket_size": min(num_trained, 500_000_000),
    }
    if any(not w.requires_grad for w in scorer.parameters()):
        # Adapter matrices stay whole on every rank: gathering them one by one would cost more than the memory saved.
        zero["stage3_param_persistence_threshold"] = max(w.numel() for w in trained) + 1
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": optimizer.max_grad_norm if settings.zero_stage > 0 else 0.0,
        "zero_optimization": zero,
        # Without "safe" modules, weights and gradients travel between ranks in their own dtype: sums stay float32.
        "torch_autocast": {
            "enabled": optimizer.precision == "bf16",
            "dtype": "bfloat16",
            "lower_precision_safe_modules": [],
        },
    }


def uncompiled(function: Any = None, **_: Any) -> Any:
    """Replace `torch.compile`, as a decorator with or without arguments, by one that returns the function unchanged."""
    return function or (lambda decorated: decorated)


def _prepared_deepspeed(device: torch.device) -> Any:
    """Import DeepSpeed and set up what it expects from a launcher."""
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    os.environ.setdefault("LOCAL_RANK", str(device.index or 0))
    # DeepSpeed uses old names of torch's collectives, which warns on every call and needs no action.
    warnings.filterwarnings("ignore", message="`torch.distributed", category=FutureWarning)
    # Its autotuner imports mlflow, and an optimizer that is not used here compiles functions on import.
    with absent("mlflow"), mock.patch.object(torch, "compile", uncompiled):
        import deepspeed
        import deepspeed.runtime.zero.muon.original_muon

    if not dist.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    if device.type == "cpu":
        # DeepSpeed would build this op at start-up, which needs a compiler and takes most of a minute.
        buildable = deepspeed.ops.__compatible_ops__.pop("deepspeed_shm_comm", False)
        if buildable and this_rank() == 0:
            log.warning("DeepSpeed on CPU uses plain gloo: its shared-memory op is for inference only and is not built")
    return deepspeed
