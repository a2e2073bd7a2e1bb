"""The training loop: the plan of each step, the engines that run it, and the checkpoints it resumes from."""

from typing import TYPE_CHECKING

from pft_core.lazy import lazy_exports

if TYPE_CHECKING:
    from pft_core.training.allocator import map_large_blocks
    from pft_core.training.checkpoint import CHECKPOINT_MANIFEST_NAME, CheckpointError, policy_folder, verify_checkpoint
    from pft_core.training.demonstrations import examples_for
    from pft_core.training.engines import EngineSettings, NonFiniteError, OptimizerSettings, TorchEngine, build_engine
    from pft_core.training.local_context import LocalContext
    from pft_core.training.loop import FitResult, TrainContext, fit
    from pft_core.training.memory import free_bytes, is_out_of_memory, loading_memory_errors, memory_errors, plan_memory
    from pft_core.training.memory_fallback import MemoryFallback, MemoryUse, OutOfMemoryError, going_on, out_of_memory
    from pft_core.training.planning import (
        ExampleStore,
        LoopSettings,
        largest_bin,
        longest_pair,
        plan_phase,
        refuse_pairs_over_budget,
    )
    from pft_core.training.progress import Advance, Stage, unwatched
    from pft_core.training.reference import ReferencedStore, reference_file, reference_logps
    from pft_core.training.settings import TrainSettings
else:
    __getattr__ = lazy_exports(__name__)
