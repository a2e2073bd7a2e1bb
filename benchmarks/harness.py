"""Fair timing: variants run in turn, round after round, so that a machine's moods hit all of them alike."""

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
    """Run every variant once per round after a warm-up round; return their CPU seconds of this process, by round.

    limit_s: wall-clock seconds after which no further round is begun (two rounds are always run).
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
    """Median over the rounds of how many times longer `slow` took than `fast` in the same round."""
    return statistics.median(a / b for a, b in zip(times[slow], times[fast], strict=True))


def machine() -> dict[str, Any]:
    """Hardware and versions, as a report of figures has to say them."""
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
    """Return a type for argparse: an integer that is not smaller."""

    def integer(text: str) -> int:
        if int(text) < smallest:
            raise argparse.ArgumentTypeError(f"{text} is less than {smallest}")
        return int(text)

    return integer


def say(text: str) -> None:
    """Progress for people goes to stderr."""
    print(text, file=sys.stderr, flush=True)


def finish(result: Mapping[str, Any], *, as_json: bool) -> None:
    """Print the result: one JSON object as the last line of stdout, or a line for each key."""
    if as_json:
        print(json.dumps(result))
    else:
        print("\n".join(f"{key:28} {value}" for key, value in result.items()))
