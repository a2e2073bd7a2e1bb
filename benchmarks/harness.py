"""Fair timing: variants take turns, round after round, so that changes in the machine's speed affect all of them."""

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Times = dict[str, list[float]]


def interleave(variants: Mapping[str, Callable[[], object]], *, rounds: int, limit_s: float = float("inf")) -> Times:
    """Run every variant once per round after a warm-up round; return its CPU seconds in this process, by round.

    limit_s: wall-clock seconds after which no further round starts; at least two rounds run.
    """
    begun = time.monotonic()
    times: Times = {name: [] for name in variants}
    for number in range(rounds + 1):
        for name, run in variants.items():
            started = time.process_time()
            run()
            if number:
                times[name].append(time.process_time() - started)
        if number >= 2 and time.monotonic() - begun > limit_s:
            break
    return times


def ratio(times: Times, slow: str, fast: str) -> float:
    """Return the median over rounds of the time of `slow` divided by the time of `fast` in the same round."""
    return statistics.median(a / b for a, b in zip(times[slow], times[fast], strict=True))


def machine() -> dict[str, Any]:
    """Return the hardware and versions that belong with every published figure."""
    import torch

    cpuinfo = Path("/proc/cpuinfo")
    names = [
        line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
    ]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": len(names),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def at_least(smallest: int) -> Callable[[str], int]:
    """Return an argparse type: an integer that is at least `smallest`."""

    def integer(text: str) -> int:
        if int(text) < smallest:
            raise argparse.ArgumentTypeError(f"{text} is less than {smallest}: use {smallest} or more")
        return int(text)

    return integer


def say(text: str) -> None:
    """Print progress to stderr."""
    print(text, file=sys.stderr, flush=True)


def finish(result: Mapping[str, Any], *, as_json: bool) -> None:
    """Print the result to stdout: one line of JSON, or one line per key."""
    if as_json:
        print(json.dumps(result))
    else:
        print("\n".join(f"{key:28} {value}" for key, value in result.items()))
