"""What `precision: auto` means on this machine."""

import platform
from functools import cache
from pathlib import Path

from pipelines.config.run_config import RunConfig
from pipelines.console import console

# Flags by which Linux names instructions for bf16: on x86 (AVX-512, AMX) and on ARM.
NATIVE_BF16 = {"avx512_bf16", "amx_bf16", "bf16"}
CPU_INFO = Path("/proc/cpuinfo")


def with_precision(config: RunConfig) -> RunConfig:
    """Replace `precision: auto`: bf16 on GPUs and on CPUs with instructions for it, else fp32. Say so for CPUs.

    The driver reads its own CPU, as the run key holds the precision: set it on a cluster with CPUs of several kinds.
    """
    precision = config.train.precision
    if precision == "auto":
        precision = "bf16" if config.scaling.use_gpu or cpu_has_bf16() else "fp32"
    if not config.scaling.use_gpu:
        _say(precision, is_given=config.train.precision != "auto")
    return config.model_copy(update={"train": config.train.model_copy(update={"precision": precision})})


@cache  # once in a process: a comparison has many configs
def _say(precision: str, *, is_given: bool) -> None:
    if not is_given:
        known = "has" if cpu_has_bf16() else "has no"
        console.print(f"train.precision: {precision}, because this CPU {known} instructions for bf16", soft_wrap=True)
    elif precision == "bf16":
        warn_if_bf16_is_slow("train.precision")


@cache
def warn_if_bf16_is_slow(key: str) -> None:
    """Say, once in a process, if this machine's CPU has no instructions for bf16, which `key` asks for."""
    if not cpu_has_bf16():
        console.print(
            f"{key}=bf16, but this CPU has no instructions for it: it takes tens of times as long as fp32; "
            f"leave {key} out, or set fp32",
            style="yellow",
            soft_wrap=True,
        )


@cache
def cpu_has_bf16() -> bool:
    """Return whether this machine's CPU has instructions for bf16; False where the flags cannot be read."""
    if platform.system() != "Linux":
        return False
    lines = (line.partition(":") for line in CPU_INFO.read_text(errors="replace").splitlines())
    flags = next((value.split() for name, _, value in lines if name.strip() in ("flags", "Features")), [])
    return not NATIVE_BF16.isdisjoint(flags)
