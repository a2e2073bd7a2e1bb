"""Token positions from a table of byte lengths equal those of the tokenizers library."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from pft_core.encoding import token_offsets
from pft_core.encoding.token_offsets import place_tokens

TEXT = ["Take the loan now, it pays off.", "Wait a year; save first!", "naïve café 東京 🙂🙂"]
ALPHABET = st.sampled_from([*"aeT .,\n", "é", "e\u0301", "東", "🙂", "\u0958", "<eos>", "Take the "])


def byte_level(*, normalizer=None, prefix_space=False, processor=None) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizer
    words = pre_tokenizers.Split(Regex(r" ?[^\s]+|\s+"), "isolated")
    last = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, last])
    if processor is not None:
        tokenizer.post_processor = processor
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<eos>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")


QWEN_LIKE = byte_level(normalizer=normalizers.NFC())


def counts(tokens, text: str) -> list[tuple[int, int]]:
    return [(tokens.ending_by(c), tokens.starting_before(c)) for c in range(len(text) + 1)]


@given(st.lists(ALPHABET, max_size=20).map("".join))
def test_positions_from_the_table_equal_those_of_the_library(text) -> None:
    (tokens,) = place_tokens([text], QWEN_LIKE)
    encoding = QWEN_LIKE.backend_tokenizer.encode(text, add_special_tokens=False)
    assert tokens.ids.tolist() == encoding.ids
    # For example, " é" may be two tokens, the second with half of é: both end by character 2, neither by character 1.
    expected = [
        (sum(end <= c for _, end in encoding.offsets), sum(start < c for start, _ in encoding.offsets))
        for c in range(len(text) + 1)
    ]
    assert counts(tokens, text) == expected


def test_the_table_is_used_for_plain_text_but_not_for_text_that_the_tokenizer_rewrites(monkeypatch) -> None:
    calls = []
    real = token_offsets._by_characters
    monkeypatch.setattr(token_offsets, "_by_characters", lambda encoding: calls.append(encoding) or real(encoding))
    place_tokens(["Take the café", "東京 🙂"], QWEN_LIKE)
    assert not calls
    place_tokens(["cafe\u0301"], QWEN_LIKE)
    assert len(calls) == 1


def test_a_tokenizer_that_is_not_bpe_works_without_a_table() -> None:
    unigram = Tokenizer(models.Unigram([("<unk>", 0.0), ("T", -1.0), ("a", -1.0), ("k", -1.0), ("e", -1.0)], unk_id=0))
    unigram.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=unigram, eos_token="<eos>")
    (tokens,) = place_tokens(["Take"], tokenizer)
    assert tokens.ending_by(2) == 2


@pytest.mark.parametrize(
    "tokenizer",
    [
        byte_level(prefix_space=True),
        byte_level(normalizer=normalizers.Lowercase()),
        byte_level(processor=processors.ByteLevel(trim_offsets=True)),
    ],
    ids=["adds a space", "rewrites", "trims its offsets"],
)
def test_for_other_tokenizers_the_library_computes_positions(tokenizer) -> None:
    assert token_offsets._token_bytes(tokenizer, len(tokenizer)) is None
    text = "Take the loan"
    (tokens,) = place_tokens([text], tokenizer)
    offsets = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    assert counts(tokens, text)[5] == (sum(end <= 5 for _, end in offsets), sum(start < 5 for start, _ in offsets))
