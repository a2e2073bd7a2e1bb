"""Ray's long messages about lost workers and nodes become one line, or none if another line reports the loss."""

import pytest

from pipelines.jobs.ray_messages import shorten_messages, shortened

DIED = (
    "A worker died or was killed while executing a task by an unexpected system error. To troubleshoot the problem, "
    "check the logs for the dead worker. Lease ID: 01 Worker ID: e1 Node ID: 51 Worker IP address: 192.0.2.2 Worker "
    "port: 34603 Worker PID: 9445 Worker exit type: SYSTEM_ERROR Worker exit detail: Worker unexpectedly exits with a "
    "connection error code 2. End of file. Some common causes include: (1) the process was killed by the OOM killer"
)


@pytest.mark.parametrize(
    ("message", "line"),
    [
        (DIED, "a worker was killed or crashed (process 9445 on 192.0.2.2)"),
        ("Raylet is terminated. Termination is unexpected.\n    [state-dump] ...\n" * 20, ""),
        ("The node with node id: 51 and address: 192.0.2.2 has been marked dead because the detector ...", ""),
        ("Task MapWorker(MapBatches(f)).submit failed. There are 3 retries remaining, so the task will ...", ""),
        ("The following resource request cannot be scheduled\nright now", "The following resource request cannot be"),
        ("x" * 5000, "x" * 300),
    ],
)
def test_a_page_of_ray_becomes_one_line(message: str, line: str) -> None:
    assert shortened(message).startswith(line)
    assert bool(shortened(message)) == bool(line)
    assert "\n" not in shortened(message)


def test_ray_messages_go_to_stderr(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    from ray._private import worker

    monkeypatch.setattr(worker, "print_to_stdstream", worker.print_to_stdstream)
    shorten_messages()
    worker.print_to_stdstream({"lines": [DIED], "pid": "raylet", "is_err": False}, ignore_prefix=False)
    said = capfd.readouterr()
    assert said.out == ""
    assert said.err.splitlines() == ["a worker was killed or crashed (process 9445 on 192.0.2.2)"]
