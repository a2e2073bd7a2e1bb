"""A tiny random Llama as a GGUF file, quantized like the files that people download."""

from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, TokenType, quantize

WIDTH, HEADS, INNER, LAYERS = 32, 2, 64, 1  # Q4_1 rounds blocks of 32 weights
SPECIALS = ["<s>", "</s>", "<|endoftext|>"]
CHAT = (
    "{% for m in messages %}{{ '<s>' + m['role'] + '\n' + m['content'] + '</s>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>assistant\n' }}{% endif %}"
)


def write_gguf(file: Path, *, seed: int = 0, layers_named: int = LAYERS) -> Path:
    """Write the file and return its path. layers_named: in its header; those beyond LAYERS have no weights."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    tokens = [*SPECIALS, *bytes_to_unicode().values(), "Ġt", "he", "Ġthe"]
    writer = GGUFWriter(file, "llama")
    _describe(writer, tokens, layers_named)
    _add_weights(writer, len(tokens), np.random.default_rng(seed))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _describe(writer: GGUFWriter, tokens: list[str], num_layers: int) -> None:
    writer.add_name("tiny")
    writer.add_license("apache-2.0")
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(num_layers)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_rope_freq_base(1e4)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.CONTROL] * 3 + [TokenType.NORMAL] * (len(tokens) - 3))
    writer.add_token_merges(["Ġ t", "h e", "Ġt he"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_unk_token_id(2)
    writer.add_pad_token_id(1)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT)


def _add_weights(writer: GGUFWriter, num_tokens: int, rng: np.random.Generator) -> None:
    shapes = {"token_embd": (num_tokens, WIDTH)}
    for layer in range(LAYERS):
        shapes |= {f"blk.{layer}.attn_{name}": (WIDTH, WIDTH) for name in ("q", "k", "v", "output")}
        shapes |= {f"blk.{layer}.ffn_{name}": (INNER, WIDTH) for name in ("gate", "up")}
        shapes |= {f"blk.{layer}.ffn_down": (WIDTH, INNER)}
    kind = GGMLQuantizationType.Q4_1
    for name, shape in shapes.items():
        weight = quantize(0.2 * rng.standard_normal(shape, dtype=np.float32), kind)
        writer.add_tensor(f"{name}.weight", weight, raw_dtype=kind)
    for name in ("output_norm", *(f"blk.{i}.{norm}" for i in range(LAYERS) for norm in ("attn_norm", "ffn_norm"))):
        writer.add_tensor(f"{name}.weight", 1 + 0.2 * rng.standard_normal(WIDTH, dtype=np.float32))
