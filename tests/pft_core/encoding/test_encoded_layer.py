"""Layers on disk: they return what was encoded, count rejects, and are keyed by all that decides token ids."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer

from pft_core.data.record_schema import RECORD_SCHEMA
from pft_core.data.records import Turn
from pft_core.encoding.layer import (
    EncodedLayer,
    encode_part,
    finish_layer,
    layer_is_complete,
    layer_key,
    tokenizer_digest,
)
from pft_core.encoding.settings import EncodingSettings
from pft_core.encoding.tokenizer_summary import tokenizer_facts
from pft_core.encoding.views import EncodingSpec, encode_pairs
from pft_core.errors import UserError
from pft_core.prompts.rendering import PromptStyle
from pft_core.prompts.settings import PromptSettings
from tests.builders import SPACE, record

SPEC = EncodingSpec(PromptStyle(), EncodingSettings(max_length=512))


@pytest.fixture(scope="module")
def tokenizer(tiny_qwen2):
    return AutoTokenizer.from_pretrained(tiny_qwen2)


def write_layer(folder: Path, tokenizer, *, spec: EncodingSpec = SPEC, shards=((0, 1, 2), (3, 4))) -> EncodedLayer:
    parts = []
    for i, numbers in enumerate(shards):
        records = folder / f"records-{i}.parquet"
        pq.write_table(pa.Table.from_pylist([record(n).to_row() for n in numbers], schema=RECORD_SCHEMA), records)
        part = folder / f"part-{i}.arrow"
        parts.append(encode_part(records, part, forms=("one", "all"), spec=spec, space=SPACE, tokenizer=tokenizer))
    finish_layer(folder, parts, key="k")
    return EncodedLayer(folder)


def test_a_layer_returns_the_encoded_examples_in_record_order(tokenizer, tmp_path) -> None:
    layer = write_layer(tmp_path, tokenizer)
    items = [(record(n), form) for n in range(5) for form in ("one", "all")]
    expected, _ = encode_pairs(items, spec=SPEC, space=SPACE, tokenizer=tokenizer)
    read = layer.read(range(len(layer)))
    assert [e.id for e in read] == [e.id for e in expected]
    for a, b in zip(read, expected, strict=True):
        assert np.array_equal(a.prefix_ids, b.prefix_ids)
        for left, right in zip(a.branches, b.branches, strict=True):
            assert np.array_equal(left.input_ids, right.input_ids)
            assert np.array_equal(left.label_mask, right.label_mask)
            assert left.side == right.side


def test_counts_are_known_without_reading_rows(tokenizer, tmp_path) -> None:
    layer = write_layer(tmp_path, tokenizer)
    examples = layer.read([4, 1])
    assert layer.label_counts([4, 1]).num_labels_EB.tolist() == [[b.num_labels for b in e.branches] for e in examples]
    assert layer.num_tokens([4, 1], sides=(0, 1), shares_prefix=False) == [e.num_tokens_separate for e in examples]
    assert layer.num_tokens([4, 1], sides=(0, 1), shares_prefix=True) == [e.num_tokens for e in examples]
    alone = len(examples[0].prefix_ids) + len(examples[0].branches[1].input_ids)
    assert layer.num_tokens([4], sides=(1,), shares_prefix=True) == [alone]


def test_overlong_pairs_are_counted_and_a_layer_without_pairs_says_why(tokenizer, tmp_path) -> None:
    with pytest.raises(UserError, match=r"no pair is left \(10 longer than encoding.max_length\)"):
        write_layer(tmp_path, tokenizer, spec=EncodingSpec(PromptStyle(), EncodingSettings(max_length=20)))


def test_a_folder_without_its_layer_file_is_not_complete(tokenizer, tmp_path) -> None:
    assert not layer_is_complete(tmp_path, key="k")
    write_layer(tmp_path, tokenizer)
    assert layer_is_complete(tmp_path, key="k")
    assert not layer_is_complete(tmp_path, key="other")


def test_the_key_changes_with_everything_that_decides_token_ids(tokenizer) -> None:
    base = {"data_digest": "d", "tokenizer_digest": tokenizer_digest(tokenizer), "spec": SPEC, "space": SPACE}
    others = [
        {"data_digest": "e"},
        {"tokenizer_digest": "t"},
        {"spec": EncodingSpec(PromptStyle("after"), EncodingSettings(max_length=512))},
        {"spec": EncodingSpec(PromptStyle(), EncodingSettings(max_length=256))},
        {"spec": EncodingSpec(PromptStyle(), EncodingSettings(max_length=512, mask="paper"))},
        {"space": SPACE.restricted_to(["Risk"])},
    ]
    keys = {layer_key(**{**base, **other}) for other in [{}, *others]}
    assert len(keys) == len(others) + 1


def test_a_layer_counts_pairs_with_control_tokens_and_overlong_pairs_separately(tokenizer, tmp_path) -> None:
    rows = [record(0), replace(record(1), scenario="It ends <eos> here ."), replace(record(2), scenario="long " * 600)]
    pq.write_table(pa.Table.from_pylist([r.to_row() for r in rows], schema=RECORD_SCHEMA), tmp_path / "r.parquet")
    part = encode_part(
        tmp_path / "r.parquet", tmp_path / "part", forms=("one",), spec=SPEC, space=SPACE, tokenizer=tokenizer
    )
    assert (part.rows, part.rejected, part.with_control_tokens, part.with_refused_turns) == (1, 2, 1, 0)


def test_a_layer_counts_pairs_whose_turns_the_chat_template_refuses(tiny_qwen2, tmp_path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_qwen2)
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no') }}{% endif %}"
        "<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
    )
    dialogue = replace(record(0), turns=(Turn("system", "Sell ."), Turn("user", "What now ?")))
    pq.write_table(pa.Table.from_pylist([dialogue.to_row()], schema=RECORD_SCHEMA), tmp_path / "r.parquet")
    counts = {}
    for template in ("chat", "plain"):
        facts = tokenizer_facts(tokenizer, PromptSettings(template=template))
        spec = EncodingSpec(facts.style, SPEC.encoding)
        how = {"forms": ("one",), "spec": spec, "space": SPACE, "tokenizer": tokenizer}
        counts[template] = encode_part(tmp_path / "r.parquet", tmp_path / template, **how)
    assert (counts["chat"].rows, counts["chat"].rejected, counts["chat"].with_refused_turns) == (0, 1, 1)
    assert (counts["plain"].rows, counts["plain"].rejected) == (1, 0)
    finish_layer(tmp_path, [counts["chat"]], key="k")
    with pytest.raises(UserError, match=r"no pair is left \(1 with turns that the chat template refuses\)"):
        EncodedLayer(tmp_path)


def test_the_facts_of_a_tokenizer_change_with_the_part_of_a_template_that_one_message_does_not_show(tiny_qwen2) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_qwen2)
    facts = {}
    for mark in ("a", "b"):
        tokenizer.chat_template = (
            "{% for m in messages %}{{ '" + mark + "' if m.role == 'assistant' else '>' }}{{ m.content }}{% endfor %}<"
        )
        facts[mark] = [tokenizer_facts(tokenizer, PromptSettings(template=t)) for t in ("chat", "plain")]  # type: ignore[arg-type]
    (chat, plain), (other_chat, other_plain) = facts.values()
    assert chat.style == other_chat.style
    assert chat.digest != other_chat.digest
    assert plain == other_plain
