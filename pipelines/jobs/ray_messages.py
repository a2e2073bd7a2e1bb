"""What Ray tells a driver of workers and nodes that are gone: a line for a worker, where Ray prints a page of logs.

Lost nodes are told of by `nodes`, which knows what is left.
"""

import re
from typing import Any

from pipelines.console import console

TOLD_OTHERWISE = re.compile(r"Raylet is terminated|The node with node id|Task .* failed\. There are \d+ retries")
DIED = re.compile(r"A worker died or was killed .*Worker IP address: (?P<ip>\S+) .*Worker PID: (?P<pid>\d+)", re.DOTALL)
LONGEST = 300  # characters of any other message


def tell_briefly() -> None:
    """Have Ray's messages of this process go to its stderr, briefly; Ray itself prints them to stdout."""
    from ray._private import worker

    worker.print_to_stdstream = _print


def _print(data: dict[str, Any], *_: Any, **__: Any) -> None:
    for message in data["lines"]:
        if told := brief(message):
            console.print(told, style="yellow", highlight=False, soft_wrap=True)


def brief(message: str) -> str:
    """Return the line that is left of a message of Ray, "" for none."""
    if TOLD_OTHERWISE.match(message):
        return ""
    if died := DIED.match(message):
        return f"a worker was killed or crashed (process {died['pid']} on {died['ip']})"
    return message.strip().partition("\n")[0][:LONGEST]
