"""`pft show prompt` prints exactly the training prompt and labels."""

from pathlib import Path

import pytest

from pft_core.errors import UserError
from pft_core.policies.pretrained import load_tokenizer
from pipelines.encode import show_prompt
from tests.builders import record, write_dataset


def test_prompt_answers_counts_and_labels_of_a_row_are_shown(
    tiny_qwen2: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    records = [record(i) for i in range(3)]
    data = write_dataset(tmp_path / "data", records, forms=("one", "all"))
    shown = show_prompt(str(data), str(tiny_qwen2), row=2)
    assert (shown["id"], shown["axis"]) == (records[1].id, "Risk")
    assert [(side["pole"], side["form"]) for side in shown["sides"]] == [
        ("Bold", "one"), ("Careful", "one"), ("Bold", "all"), ("Careful", "all")
    ]  # fmt: skip
    tokenizer = load_tokenizer(str(tiny_qwen2))
    for side in shown["sides"]:
        assert "plan 1" in side["text"]
        assert side["text"].endswith(side["labels"])
        assert len(tokenizer(side["labels"], add_special_tokens=False).input_ids) == side["num_labels"]
        assert 0 < side["num_labels"] < side["num_tokens"]
    assert f"{shown['sides'][0]['num_labels']} of them labels" in capfd.readouterr().err


@pytest.mark.parametrize("row", [0, -1, 4, 10**30])
def test_a_missing_row_is_reported(tiny_qwen2: Path, tmp_path: Path, row: int) -> None:
    data = write_dataset(tmp_path / "data", [record(i) for i in range(3)])
    with pytest.raises(UserError, match="has rows 1 to 3"):
        show_prompt(str(data), str(tiny_qwen2), row=row)
