"""Tests of the conversion between tokens and text: bytes, stop strings, and choices in context."""

import random
from collections.abc import Sequence
from typing import Any

import pytest

from pft_core.encoding.tokens import tokenize
from pft_core.errors import UserError
from pipelines.serve.engines.serving_engine import Token
from pipelines.serve.requests.in_context import in_context
from pipelines.serve.requests.text_stream import TextStream, TextToken
from pipelines.serve.requests.token_bytes import TokenBytes
from tests.pipelines.serve.model_kinds import byte_fallback, byte_level

TOKENIZERS = {"bytes": byte_level(), "byte fallback": byte_fallback()}
TEXTS = ("The town has a plan", "wait 🙂 and 天気 naïve Ω.", "天気天気", "  go  on\n\nat once ", "🙂🙂")


def stream_text(
    tokenizer: Any, ids: Sequence[int], *, stops: Sequence[str] = (), **how: Any
) -> tuple[list[str], list[TextToken], bool]:
    """Feed all tokens; return the text after each token, all tokens, and whether a stop string was found."""
    stream = TextStream(TokenBytes(tokenizer), stops, **how)
    pieces = []
    for token_id in ids:
        pieces.append(stream.feed(Token(token_id)))
        if stream.is_stopped:
            break
    pieces.append(stream.rest())
    return [text for text, _ in pieces], [token for _, tokens in pieces for token in tokens], stream.is_stopped


def ids_of(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("text", TEXTS)
def test_a_text_equals_the_text_and_the_bytes_of_its_tokens(name: str, text: str) -> None:
    texts, tokens, _ = stream_text(TOKENIZERS[name], ids_of(TOKENIZERS[name], text))
    assert "".join(texts) == text
    assert b"".join(token.text for token in tokens) == text.encode()
    for token in tokens:
        before = b"".join(each.text for each in tokens[: tokens.index(token)])
        assert token.offset == len(before.decode(errors="ignore"))


@pytest.mark.parametrize("name", TOKENIZERS)
def test_joined_bytes_are_the_text_even_of_random_tokens(name: str) -> None:
    """Random tokens have bytes that form no characters, at which a token-by-token decoder fails."""
    tokenizer, rng = TOKENIZERS[name], random.Random(0)
    for _ in range(300):
        ids = [rng.randrange(len(tokenizer) + 3) for _ in range(rng.randrange(1, 30))]
        texts, tokens, _ = stream_text(tokenizer, ids)
        assert "".join(texts) == b"".join(token.text for token in tokens).decode(errors="replace")
        assert [token.token.id for token in tokens] == ids
        if name == "bytes":
            assert "".join(texts) == tokenizer.decode(ids, skip_special_tokens=True)


def test_bytes_and_names_of_byte_space_and_special_tokens() -> None:
    tokenizer = TOKENIZERS["byte fallback"]
    token_bytes = TokenBytes(tokenizer)
    one = tokenizer.convert_tokens_to_ids("<0xF0>")
    assert (token_bytes.bytes_of(one), token_bytes.name(one)) == (b"\xf0", "bytes:\\xf0")
    space = tokenizer.convert_tokens_to_ids("▁")
    assert (token_bytes.bytes_of(space), token_bytes.bytes_of(space, is_first=True)) == (b" ", b"")
    assert token_bytes.bytes_of(tokenizer.eos_token_id) == b""
    assert token_bytes.name(tokenizer.eos_token_id) == "</s>"


@pytest.mark.parametrize("stop", ["plan", "has a", "own", " ", "T", "n has"])
@pytest.mark.parametrize("name", TOKENIZERS)
def test_text_and_tokens_end_before_a_stop_string(name: str, stop: str) -> None:
    text = "The town has a plan"
    texts, tokens, stopped = stream_text(TOKENIZERS[name], ids_of(TOKENIZERS[name], text), stops=["never", stop])
    assert stopped
    assert "".join(texts) == text[: text.find(stop)]
    assert b"".join(token.text for token in tokens) == text[: text.find(stop)].encode()


def test_a_possible_beginning_of_a_stop_string_is_held_back_with_its_tokens() -> None:
    stream = TextStream(TokenBytes(TOKENIZERS["bytes"]), ["at once!"])
    pieces = [stream.feed(Token(id)) for id in ids_of(TOKENIZERS["bytes"], "go on at once, wait")]
    for i in range(len(pieces)):
        text = "".join(text for text, _ in pieces[: i + 1])
        assert text == b"".join(token.text for _, tokens in pieces[: i + 1] for token in tokens).decode()
        assert "at" not in text or "at once," in text


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_lead_is_removed_from_text_and_bytes(name: str) -> None:
    ids = ids_of(TOKENIZERS[name], "Answer: yes")
    for lead in ("A", "Answer", "Answer: "):
        texts, tokens, _ = stream_text(TOKENIZERS[name], ids, lead=lead)
        assert "".join(texts) == "Answer: yes".removeprefix(lead)
        assert b"".join(token.text for token in tokens).decode() == "".join(texts)
    assert "".join(stream_text(TOKENIZERS[name], ids, lead="Answers")[0]) == "Answer: yes"


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("prompt", ["Answer:", "[INST] go [/INST]", "The to", "wait and as"])
def test_choices_get_the_tokens_that_they_have_after_the_prompt(name: str, prompt: str) -> None:
    tokenizer, choices = TOKENIZERS[name], ["yes", "wn has", "k again", "🙂", "no"]
    texts = [prompt + choice for choice in choices]
    rows = [row.ids.tolist()[:-1] for row in tokenize(texts, [0] * 5, [(0, 0)] * 5, tokenizer)]
    alone = tokenize([prompt], [0], [(0, 0)], tokenizer)[0].ids.tolist()[:-1]
    split = in_context(alone, rows)
    assert [[*split.prompt_ids, *ids] for ids in split.choices] == rows
    assert list(split.prompt_ids) == alone[: len(split.prompt_ids)]
    before, shared = (tokenizer.decode(ids, skip_special_tokens=True) for ids in (alone, split.prompt_ids))
    repeated = before[len(shared) :]
    for choice, ids in zip(choices, split.choices, strict=True):
        assert "".join(stream_text(tokenizer, ids, lead=repeated, continues_text=True)[0]) == choice


def test_a_choice_that_merges_with_the_whole_prompt_is_refused() -> None:
    with pytest.raises(UserError, match="longer prompt"):
        in_context([5], [[6], [5, 7]])
