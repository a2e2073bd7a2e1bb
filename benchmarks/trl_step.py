"""TRL's trainers on our pairs, with TRL's own collation and loss and its fastest settings on this device.

Rows are padded to the longest of a batch, because padding-free batches need a varlen kernel, which CPUs lack. DPO gets
precomputed reference log-probabilities. On a CPU, the heads of both trainers score every position instead of the labels
only, which no setting changes; `head_on_labels` does, to compare with TRL's behavior on a GPU.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer
from trl.trainer import utils as trl_utils

from pft_core.encoding import BranchedExample

COMMON: dict[str, Any] = {"report_to": "none", "max_length": None, "bf16": False, "gradient_checkpointing": False}


def sft_loss(model: nn.Module, examples: Sequence[BranchedExample], *, use_cpu: bool) -> Callable[[], Tensor]:
    """Return a function that collates all sides into one batch and returns SFTTrainer's loss, the mean over labels."""
    rows = sft_rows(examples)
    trainer = sft_trainer(model, rows, use_cpu=use_cpu)
    return lambda: trainer.compute_loss(model, trainer._prepare_inputs(trainer.data_collator(rows)))


def sft_rows(examples: Sequence[BranchedExample]) -> list[dict[str, Any]]:
    """Return a full row for every side: its prompt and its answer, which alone has labels."""
    return [
        {
            "input_ids": [*e.prefix_ids.tolist(), *b.input_ids.tolist()],
            "labels": [-100] * (len(e.prefix_ids) + len(b.input_ids) - b.num_labels)
            + b.input_ids[b.label_mask].tolist(),
        }
        for e in examples
        for b in e.branches
    ]


def sft_trainer(model: nn.Module, rows: list[dict[str, Any]], **settings: Any) -> SFTTrainer:
    """Return SFTTrainer for encoded rows. settings: of SFTConfig, beside those that all trainers here share."""
    config = SFTConfig(
        tempfile.mkdtemp(), dataset_kwargs={"skip_prepare_dataset": True}, remove_unused_columns=False,
        **COMMON | settings,
    )  # fmt: skip
    return SFTTrainer(model, config, train_dataset=Dataset.from_list(rows), processing_class=_tokenizer())


def dpo_loss(
    model: nn.Module, examples: Sequence[BranchedExample], *, reference: Sequence[float], beta: float, use_cpu: bool
) -> Callable[[], Tensor]:
    """Return a function that collates the pairs and returns DPOTrainer's loss. reference: log-probabilities [2 E]."""
    trainer, rows = dpo_trainer(model, examples, reference=reference, beta=beta, use_cpu=use_cpu)
    return lambda: trainer.compute_loss(model, trainer._prepare_inputs(trainer.data_collator(rows)))


def dpo_trainer(
    model: nn.Module,
    examples: Sequence[BranchedExample],
    *,
    reference: Sequence[float],
    beta: float,
    use_cpu: bool,
    loss_type: str = "sigmoid",
) -> tuple[DPOTrainer, list[dict[str, Any]]]:
    """Return a trainer and the rows for its collator. examples: chosen and rejected answers to one prompt."""
    rows = [
        {
            "prompt_ids": e.prefix_ids.tolist(),
            "chosen_ids": e.branches[0].input_ids.tolist(),
            "rejected_ids": e.branches[1].input_ids.tolist(),
            "ref_chosen_logps": reference[2 * i],
            "ref_rejected_logps": reference[2 * i + 1],
        }
        for i, e in enumerate(examples)
    ]
    config = DPOConfig(
        tempfile.mkdtemp(), beta=beta, loss_type=loss_type, precompute_ref_log_probs=False, use_cpu=use_cpu, **COMMON
    )
    text = Dataset.from_list([{"prompt": "w", "chosen": "w", "rejected": "w"}])
    trainer = DPOTrainer(model, args=config, train_dataset=text, processing_class=_tokenizer())
    trainer.precompute_ref_logps = True  # the rows hold theirs
    return trainer, rows


@contextmanager
def head_on_labels() -> Iterator[None]:
    """Make TRL's head score label positions only, as it does if its Triton kernel is available."""
    original = trl_utils._use_triton
    trl_utils._use_triton = lambda device: True
    try:
        yield
    finally:
        trl_utils._use_triton = original


def _tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(WordLevel({"<pad>": 0, "<eos>": 1, "w": 2}, unk_token="w"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="w")
