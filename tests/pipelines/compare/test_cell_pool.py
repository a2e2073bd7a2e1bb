"""A cell whose worker dies is run again; one whose worker always dies fails alone."""

import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipelines.compare import cell_pool

pytestmark = pytest.mark.ray


class DyingWorker:
    """A worker that is killed as many times as the cell says."""

    def __init__(self, relay: Any) -> None: ...

    def run(self, cell: Any) -> dict[str, Any]:
        deaths = Path(cell.folder) / cell.name
        died = int(deaths.read_text()) if deaths.exists() else 0
        if died < cell.deaths:
            deaths.write_text(str(died + 1))
            os.kill(os.getpid(), signal.SIGKILL)
        return {"name": cell.name}


def test_a_cell_whose_worker_dies_is_run_again(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cell_pool, "CellActor", DyingWorker)
    monkeypatch.setattr(cell_pool, "MAX_FAILURES", 1)
    monkeypatch.setattr(cell_pool, "stored_result", lambda cell: None)
    cells: Any = [
        SimpleNamespace(name=name, title=name, folder=str(tmp_path), deaths=deaths)
        for name, deaths in (("once", 1), ("always", 99))
    ]
    results = cell_pool.run_cells(cells, at_once=2, resources={"CPU": 1})
    assert results[0] == {"name": "once"}
    assert "the worker died" in results[1]["error"]
    assert (tmp_path / "always").read_text() == "2"
