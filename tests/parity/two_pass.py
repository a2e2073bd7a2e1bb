"""An independent reference trainer: two padded passes per pair, full logits, and transformers' own loss.

It shares no code with the product, and writes a folder in the format that `tests.parity.golden` reads.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel, get_linear_schedule_with_warmup

IGNORED = -100


def write_reference(
    folder: Path, base: PreTrainedModel, settings: dict[str, Any], *, num_pairs: int, seed: int
) -> None:
    """Train as the paper's code does, and write model, adapter, pairs, trajectory and final weights.

    settings: the training settings in `expected.json`, and `max_length`.
    """
    torch.manual_seed(seed)
    base.save_pretrained(folder / "model")
    lora = LoraConfig(
        r=4, lora_alpha=16, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"], task_type="CAUSAL_LM"
    )
    model = get_peft_model(base, lora)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.05)
    model.save_pretrained(folder / "adapter")
    pairs = random_pairs(num_pairs, settings["max_length"], seed)
    (folder / "pairs_tokenized.json").write_text(json.dumps({"max_length": settings["max_length"], "pairs": pairs}))
    initial = [[side_loss(model, [pair], side).item() for side in "ab"] for pair in pairs]
    trajectory = train(model, pairs, settings)
    save_file(
        {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad},
        folder / "final_lora.safetensors",
    )
    expected = settings | {"initial_mean_ce_per_pair": initial, "trajectory": trajectory}
    (folder / "expected.json").write_text(json.dumps(expected))


def random_pairs(count: int, max_length: int, seed: int) -> list[dict[str, Any]]:
    """Return pairs of unequal lengths; those that exceed max_length lose the end of their answer."""
    rng = np.random.default_rng(seed)

    def ids(low: int, high: int) -> list[int]:
        return [int(t) for t in rng.integers(3, 600, rng.integers(low, high))]

    pairs = []
    for _ in range(count):
        scenario = ids(5, 40)
        sides = {side: {"prompt_ids": ids(1, 4) + scenario, "response_ids": ids(1, 30)} for side in "ab"}
        for side in sides.values():
            side["response_ids"] = side["response_ids"][: max(0, max_length - len(side["prompt_ids"]))]
        pairs.append(sides)
    return pairs


def side_loss(model: Any, pairs: list[dict[str, Any]], side: str) -> Tensor:
    """Return the cross-entropy of one side's answers in a padded micro-batch: the mean over all its answer tokens."""
    length = max(len(p[side]["prompt_ids"]) + len(p[side]["response_ids"]) for p in pairs)
    ids, labels, attention = [], [], []
    for pair in pairs:
        prompt, answer = pair[side]["prompt_ids"], pair[side]["response_ids"]
        padding = length - len(prompt) - len(answer)
        ids.append(prompt + answer + [0] * padding)
        labels.append([IGNORED] * len(prompt) + answer + [IGNORED] * padding)
        attention.append([1] * (length - padding) + [0] * padding)
    loss: Tensor = model(
        input_ids=torch.tensor(ids), attention_mask=torch.tensor(attention), labels=torch.tensor(labels)
    ).loss
    return loss


def train(model: Any, pairs: list[dict[str, Any]], settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Train and return the micro-batch losses, gradient norm and lr of each step."""
    weights = [p for p in model.parameters() if p.requires_grad]
    adamw = torch.optim.AdamW(weights, lr=settings["learning_rate"], weight_decay=settings["weight_decay"])
    schedule = get_linear_schedule_with_warmup(adamw, settings["warmup_steps"], settings["scheduler_total_steps"])
    size, accumulation = settings["batch_size"], settings["gradient_accumulation_steps"]
    trajectory = []
    batches = [pairs[i : i + size] for i in range(0, len(pairs), size)] * settings["epochs"]
    for start in range(0, len(batches) - accumulation + 1, accumulation):
        losses = []
        for batch in batches[start : start + accumulation]:
            loss = settings["alpha"] * side_loss(model, batch, "a") + settings["beta"] * side_loss(model, batch, "b")
            (loss / accumulation).backward()
            losses.append(loss.item())
        norm = torch.nn.utils.clip_grad_norm_(weights, settings["max_grad_norm"])
        lr = schedule.get_last_lr()[0]
        adamw.step()
        schedule.step()
        adamw.zero_grad()
        trajectory.append({"micro_losses": losses, "grad_norm_before_clip": norm.item(), "lr": lr})
    return trajectory
