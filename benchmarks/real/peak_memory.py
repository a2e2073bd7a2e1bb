"""The peak of a process's resident memory, as Linux counts it."""

from pathlib import Path
from typing import Any

import psutil
from torch.nn.modules.module import register_module_forward_pre_hook

from pft_core.scoring import BranchScorer

RESET_PEAK = "5"  # of clear_refs(5), see proc(5)


class PeakMemory:
    """Counts from the first forward of a scorer, which is the one that the memory plan measures."""

    def __init__(self) -> None:
        self._held = 0
        self._hook = register_module_forward_pre_hook(self._start)

    def _start(self, module: Any, _: Any) -> None:
        if isinstance(module, BranchScorer):
            self._hook.remove()
            self._held = psutil.Process().memory_info().rss
            Path("/proc/self/clear_refs").write_text(RESET_PEAK)

    def mb(self) -> float:
        """Return the peak since then above the memory held then, in MiB."""
        lines = (line.partition(":") for line in Path("/proc/self/status").read_text().splitlines())
        peak_kb = next(int(value.split()[0]) for name, _, value in lines if name == "VmHWM")
        return (peak_kb * 1024 - self._held) / 2**20
