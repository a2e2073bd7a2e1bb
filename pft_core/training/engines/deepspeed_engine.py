"""DeepSpeedEngine: ZeRO 0-3 behind the engine contract, on CPU (gloo) and CUDA (NCCL).

DeepSpeed averages gradients over ranks, so the loss is multiplied by their number; it is never asked to scale by an
accumulation count, as the number of bins varies from step to step. Its clipping equals torch's up to rounding.
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
    """ZeRO stage 0 (replicas), 1 (optimizer state cut), 2 (and gradients) or 3 (and weights, the frozen ones too)."""

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
        self._watch(loss)
        self._engine.set_gradient_accumulation_boundary(is_last)
        self._engine.backward(loss * num_ranks(), scale_wrt_gas=False)

    def _update(self) -> float:
        if self.settings.zero_stage == 0:
            # Without ZeRO, DeepSpeed neither reports the norm nor checks it; gradients are summed by now.
            norm = clip_gradients(self.trained.values(), self.optimizer.max_grad_norm)
            self._engine.step()
            return norm
        self._engine.step()
        if not self._engine.was_step_applied():
            raise NonFiniteError("a gradient is infinite or not a number; no weight has changed")
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
            # Whole weights are dropped, so that the next forward gathers them anew.
            zero.checkpoint_event_prologue()
            for i in range(len(self._partitions())):
                zero._reassign_or_swap_out_partitioned_parameters(i)

    def gathered_state(self) -> dict[str, Tensor]:
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
    """Derive DeepSpeed's JSON. Batch sizes are formal: a step is what `backward(is_last=True)` ends."""
    num_trained = sum(w.numel() for w in trained)
    zero: dict[str, Any] = {
        "stage": settings.zero_stage,
        # The default bucket of 5e8 elements would reserve 2 GB for an adapter of a few million weights.
        "reduce_bucket_size": min(num_trained, 500_000_000),
    }
    if any(not w.requires_grad for w in scorer.parameters()):
        # Adapter matrices stay whole on every rank: gathered one by one they cost more time than they save memory.
        zero["stage3_param_persistence_threshold"] = max(w.numel() for w in trained) + 1
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": optimizer.max_grad_norm if settings.zero_stage > 0 else 0.0,
        "zero_optimization": zero,
        # With no "safe" modules, weights and gradients travel between ranks in their own type: sums stay float32.
        "torch_autocast": {
            "enabled": optimizer.precision == "bf16",
            "dtype": "bfloat16",
            "lower_precision_safe_modules": [],
        },
    }


def uncompiled(function: Any = None, **_: Any) -> Any:
    """Stand in for `torch.compile`, as a decorator with or without arguments: leave the function as it is."""
    return function or (lambda decorated: decorated)


def _prepared_deepspeed(device: torch.device) -> Any:
    """Import DeepSpeed and set what it expects from a launcher."""
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    os.environ.setdefault("LOCAL_RANK", str(device.index or 0))
    # DeepSpeed calls collectives by names that torch has since renamed: a warning per call, and nothing to act on.
    warnings.filterwarnings("ignore", message="`torch.distributed", category=FutureWarning)
    # Its autotuner wants mlflow, and an optimizer that is not used here compiles functions when it is imported.
    with absent("mlflow"), mock.patch.object(torch, "compile", uncompiled):
        import deepspeed
        import deepspeed.runtime.zero.muon.original_muon

    if not dist.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    if device.type == "cpu":
        # DeepSpeed would compile this op at start-up, which takes a compiler and most of a minute.
        buildable = deepspeed.ops.__compatible_ops__.pop("deepspeed_shm_comm", False)
        if buildable and this_rank() == 0:
            log.warning("DeepSpeed on CPU: plain gloo (its shared-memory op serves inference only and is not built)")
    return deepspeed
