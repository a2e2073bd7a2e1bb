from pathlib import Path

import pytest

from pft_core.errors import UserError
from pipelines import data_check
from pipelines.prepare import PrepareConfig
from pipelines.prepare import job as prepare


@pytest.mark.ray
def test_the_parts_of_a_folder_are_checked_together(ray_cluster: None, tmp_path: Path) -> None:
    for split in ("train", "twins"):
        prepare.run(PrepareConfig(source="dilemmas", split=split, output=str(tmp_path / "all" / split)))
    result = data_check.run(tmp_path / "all")
    assert list(result["parts"]) == ["train", "twins"]
    assert result["leaks"] == []
    assert {scores["one"] for scores in result["parts"]["twins"]["yardsticks"]["bag_of_words"].values()} == {0.5}
    assert not any("twins" in finding for finding in result["findings"])


def test_a_folder_without_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no data here that `pft prepare` wrote"):
        data_check.run(tmp_path)
