"""What is left out as pairs are encoded counts each time a layer is used."""

from pathlib import Path

import pytest

from pft_core.data.manifest import DatasetManifest
from pft_core.encoding import EncodingSettings, EncodingSpec
from pft_core.errors import UserError
from pft_core.prompts.settings import PromptSettings
from pipelines.encode import ModelTokenizer
from pipelines.encode.job import ensure_layer
from tests.builders import record, write_dataset

LEFT_OUT = "3 of 8 pairs are longer than encoding.max_length=180: left out"


def test_a_layer_that_is_used_again_counts_what_it_left_out(tiny_qwen2: Path, tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data", [record(i, num_options=3 if i < 5 else 10) for i in range(8)])
    tokenizer = ModelTokenizer(str(tiny_qwen2))
    facts = tokenizer.facts(PromptSettings())
    spec = EncodingSpec(facts.style, EncodingSettings(max_length=180))

    def said(max_reject_fraction: float) -> list[str]:
        notes: list[str] = []
        ensure_layer(
            data,
            DatasetManifest.load(data),
            tokenizer=tokenizer,
            facts=facts,
            spec=spec,
            max_reject_fraction=max_reject_fraction,
            concurrency=1,
            say=notes.append,
        )
        return notes

    assert said(0.5)[1:] == [LEFT_OUT]
    again = said(0.5)
    assert again[0].endswith("reused")
    assert again[1:] == [LEFT_OUT]
    with pytest.raises(UserError, match="max_length=180 leaves 5 of 8 pairs"):
        said(0.3)
