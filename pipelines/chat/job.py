"""`chat`: load a policy in this process, answer lines from the terminal or a pipe, and return what was said."""

import asyncio
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pft_core.errors import UserError
from pft_core.policies import MODEL_REF_NAME
from pipelines.interruption import is_interrupted
from pipelines.runs import run_place
from pipelines.serve import ServeConfig, refuse_missing_policies
from pipelines.validated_yaml import build


def run(name: str, storage: Path) -> dict[str, Any]:
    """Answer lines of stdin under both poles of an axis, until the last line, /quit or Ctrl-C.

    name: a run's folder, its model_ref.json, or its name below `storage`. Result: policy, axes, questions, and
    exchanges if stdin is not a terminal. Raises UserError if the run has no policy.
    """
    if sys.stdin is None:
        raise UserError("stdin is closed, but scenarios are read there: remove <&-, or redirect a file to it")
    place = policy_folder(name, storage)
    with tempfile.TemporaryDirectory(prefix="pft-chat-") as cache:
        config = config_for(place, Path(cache))
        refuse_missing_policies(config)
        from pipelines.chat.conversation import Conversation
        from pipelines.serve import gateway_here

        with gateway_here(config) as gateway, asyncio.Runner() as runner:
            conversation = Conversation(gateway, runner)
            is_typed = sys.stdin.isatty()
            with ending_at_ctrl_c():
                conversation.hold(lines(is_typed=is_typed), echo=not is_typed)
    said = {} if is_typed else {"exchanges": conversation.exchanges}
    axes = [axis.name for axis in conversation.policy.space.axes]
    return {"policy": str(place), "axes": axes, "questions": len(conversation.exchanges), **said}


def policy_folder(name: str, storage: Path) -> Path:
    """Return the folder of a run with a policy. Raises UserError."""
    place = run_place(name, storage)
    if (place / MODEL_REF_NAME).is_file():
        return place
    inside = sorted(str(path.parent) for path in place.glob(f"*/{MODEL_REF_NAME}"))
    advice = f"give one of {', '.join(inside)}" if inside else "give a run of `pft train`"
    raise UserError(f"{place}: no policy, as it has no {MODEL_REF_NAME}: {advice}")


def config_for(place: Path, cache: Path) -> ServeConfig:
    """Return the serving config of a policy in this process, on all cores that it may use."""
    threads = len(os.sched_getaffinity(0))
    engine = {"name": "transformers", "threads": threads}
    return build(ServeConfig, {"policy": str(place), "engine": engine, "store": {"cache": str(cache)}})


@contextmanager
def ending_at_ctrl_c() -> Iterator[None]:
    """Leave the block at Ctrl-C, also in the middle of an answer, as at the end of the lines."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        if is_interrupted():  # by SIGTERM, which ends the verb
            raise
    finally:
        signal.signal(signal.SIGINT, before)


def lines(*, is_typed: bool) -> Iterator[str]:
    """Yield the lines of stdin; a terminal gets a prompt, and a history of lines if Python has one."""
    if is_typed:
        import readline  # noqa: F401  # `input` uses it once it is imported
    while True:
        try:
            yield input("> " if is_typed else "")
        except EOFError:
            return
