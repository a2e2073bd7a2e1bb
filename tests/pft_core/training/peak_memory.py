"""Train three steps on 30 layers; print the estimated bytes, and the process's peak memory above its start.

It runs as a process of its own, because a process has one peak of its resident set and one allocator.
"""

import ctypes
import gc
import re
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from pft_core.policies.model import add_lora
from pft_core.policies.settings import LoraSettings
from pft_core.scoring.scorer import BranchScorer
from pft_core.training.allocator import map_large_blocks
from pft_core.training.memory import measure_kept_bytes, probe_batch

SIZES = {"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3}


def resident_bytes(field: str) -> int:
    match = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match
    return int(match[1]) * 1024


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    map_large_blocks()
    model = LlamaForCausalLM(LlamaConfig(vocab_size=4096, num_hidden_layers=30, **SIZES))
    scorer = BranchScorer(add_lora(model, LoraSettings(), seed=0)).train()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = resident_bytes("VmRSS")
    batch = probe_batch(5)
    estimate = measure_kept_bytes(scorer, precision="fp32", device=torch.device("cpu"))
    estimated_bytes = estimate.of(scorer.count_tokens(batch)[1])
    for _ in range(3):
        (-scorer(batch).sum()).backward()
    print(estimated_bytes, resident_bytes("VmHWM") - before)


if __name__ == "__main__":
    main()
