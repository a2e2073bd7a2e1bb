"""Shorten Ray's messages about lost workers to one line each; Ray prints a page of logs.

Lost nodes are reported by `nodes`, which knows how many are left.
"""

import re
from typing import Any

from pipelines.console import console

REPORTED_ELSEWHERE = re.compile(r"Raylet is terminated|The node with node id|Task .* failed\. There are \d+ retries")
DIED = re.compile(r"A worker died or was killed .*Worker IP address: (?P<ip>\S+) .*Worker PID: (?P<pid>\d+)", re.DOTALL)
LONGEST = 300  # characters in any other message


def shorten_messages() -> None:
    """Print Ray's messages to stderr, shortened; Ray itself prints them to stdout."""
    from ray._private import worker

    worker.print_to_stdstream = _print


def _print(data: dict[str, Any], *_: Any, **__: Any) -> None:
    for message in data["lines"]:
        if line := shortened(message):
            console.print(line, style="yellow", highlight=False, soft_wrap=True)


def shortened(message: str) -> str:
    """Return one line for a message of Ray, or "" to drop it."""
    if REPORTED_ELSEWHERE.match(message):
        return ""
    if died := DIED.match(message):
        return f"a worker was killed or crashed (process {died['pid']} on {died['ip']})"
    return message.strip().partition("\n")[0][:LONGEST]
