"""Tiny models and tokenizers of various kinds."""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

CORPUS = ["Answer: yes no maybe. The town has a plan. go on at once, wait and ask again."] * 20
LLAMA2 = (
    "{{bos_token}}{% for m in messages %}{% if m['role']=='user' %}[INST] {{m['content'].strip()}} [/INST]"
    "{% else %} {{m['content'].strip()}} {{eos_token}}{% endif %}{% endfor %}"
)


def byte_level() -> PreTrainedTokenizerFast:
    """Return a tokenizer of Qwen's kind: every token is bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=340, special_tokens=specials, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")


def byte_fallback() -> PreTrainedTokenizerFast:
    """Return a tokenizer of Llama-2's kind: unknown characters are bytes, and a space is a mark before the word."""
    byte_tokens = [f"<0x{i:02X}>" for i in range(256)]
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trainer = trainers.BpeTrainer(vocab_size=360, special_tokens=["<unk>", "<s>", "</s>", *byte_tokens])
    tokenizer.train_from_iterator(CORPUS, trainer)
    raw = json.loads(tokenizer.to_str())
    raw["added_tokens"] = [t for t in raw["added_tokens"] if not t["content"].startswith("<0x")]  # plain vocabulary
    raw["model"]["byte_fallback"] = True
    tokenizer = Tokenizer.from_str(json.dumps(raw))
    strip = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(strip)
    bos = ("<s>", tokenizer.token_to_id("<s>"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[bos]
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    fast.chat_template = LLAMA2
    return fast


LAYERS = {"hidden_size": 32, "num_hidden_layers": 2}
HEADS = {"intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 1024}
SIZES: dict[str, dict[str, Any]] = {
    "llama": LAYERS | HEADS,
    "mamba": LAYERS | {"state_size": 4, "pad_token_id": 0},
    "lfm2": LAYERS | HEADS | {"layer_types": ["conv", "full_attention"]},  # a hybrid
    # Keys and values have different sizes (multi-head latent attention), and experts are selected by groups.
    "deepseek_v3": LAYERS | {
        "intermediate_size": 48, "moe_intermediate_size": 16, "num_attention_heads": 4, "num_key_value_heads": 4,
        "q_lora_rank": 24, "kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 12,
        "n_routed_experts": 16, "n_group": 4, "topk_group": 2, "num_experts_per_tok": 4, "first_k_dense_replace": 1,
        "max_position_embeddings": 1024,
    },
}  # fmt: skip


def save(folder: Path, tokenizer: PreTrainedTokenizerFast, kind: str = "llama", *, rows: int | None = None) -> Path:
    """Write a random model of a kind with a tokenizer. rows: the number of embedding rows."""
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **ends, vocab_size=rows or len(tokenizer), **SIZES[kind])
    model = AutoModelForCausalLM.from_config(config)
    for name, weight in model.named_parameters():
        if weight.ndim > 1 and "A_log" not in name:
            torch.nn.init.normal_(weight, 0, 0.3)  # random text should differ from step to step
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
