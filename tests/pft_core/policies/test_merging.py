"""Merged models score as base and adapter do."""

import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from pft_core.policies.merging import write_merged
from pft_core.policies.model import add_lora, load_base, load_policy, save_adapter
from pft_core.policies.settings import LoraSettings

CPU = torch.device("cpu")


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
@pytest.mark.parametrize("targets", [["q_proj", "down_proj"], ["q_proj", "lm_head"]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_merged_model_has_the_logits_of_base_and_adapter(
    tiny_qwen2: Path, tmp_path: Path, targets: list[str], dtype: torch.dtype
) -> None:
    """The tiny model's head and embeddings are one weight: an adapter on the head must not change the embeddings."""
    base = str(shutil.copytree(tiny_qwen2, tmp_path / "base"))
    AutoModelForCausalLM.from_pretrained(tiny_qwen2, dtype=dtype).save_pretrained(base)
    loaded = load_base(base, precision="fp32", gradient_checkpointing=False, device=CPU)
    model = add_lora(loaded, LoraSettings(r=4, alpha=8, dropout=0.0, target_modules=targets), seed=0)
    generator = torch.Generator().manual_seed(0)
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    save_adapter(
        model, {n: 0.3 * torch.randn(w.shape, generator=generator) for n, w in trained.items()}, tmp_path / "a"
    )
    (tmp_path / "merged").mkdir()
    write_merged(base, tmp_path / "a", tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    policy = load_policy(base, str(tmp_path / "a"), None, precision="fp32", device=CPU)
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, policy(ids).logits, rtol=0, atol=1e-4)
    assert merged.config.tie_word_embeddings == ("lm_head" not in targets)
