"""Shared fixtures: one Ray cluster per session, tiny random models, and the released data in PFT_DATA."""

import os
import sys

os.environ["PATH"] = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])  # jobs call `python`
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)

WORDS = (
    "The a of to plan job town garden river boat market week money friend teacher letter question answer option "
    "Preference Risk Orientation taking averse accepts keeps certain Choose Reply choice choices that fits every one"
)


def _tiny_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=["<pad>", "<bos>", "<eos>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator([WORDS] * 4, trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>"
    ).save_pretrained(folder)


def _tiny_model(folder: Path, config_class: type, model_class: type) -> Path:
    torch.manual_seed(0)
    config = config_class(
        vocab_size=600,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        initializer_range=0.08,
        tie_word_embeddings=True,
    )
    model_class(config).save_pretrained(folder)
    _tiny_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_qwen2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random 2-layer Qwen2 with a byte-level BPE tokenizer of 600 tokens."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    return _tiny_model(tmp_path_factory.mktemp("tiny_qwen2"), Qwen2Config, Qwen2ForCausalLM)


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random 2-layer Llama with the same tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return _tiny_model(tmp_path_factory.mktemp("tiny_llama"), LlamaConfig, LlamaForCausalLM)


def _released(name: str) -> Path:
    root = os.environ.get("PFT_DATA")
    if not root:
        pytest.skip("PFT_DATA is not set: set it to the folder of the released data files")
    folder = Path(root) / name
    if not folder.is_dir():
        pytest.skip(f"{folder} does not exist")
    return folder


@pytest.fixture(scope="session")
def vcd_dir() -> Path:
    return _released("vcd")


@pytest.fixture(scope="session")
def bqd_dir() -> Path:
    return _released("bqd")


@pytest.fixture(scope="session")
def persona_dir() -> Path:
    return _released("persona")


@pytest.fixture(scope="session")
def moralchoice_dir() -> Path:
    return _released("moralchoice")


@pytest.fixture(scope="session")
def prefeval_dir() -> Path:
    return _released("prefeval")


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One local Ray for the session; 6 logical CPUs keep Ray Data from starving beside training workers."""
    import ray

    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    ray.init(
        "local", num_cpus=6, include_dashboard=True, dashboard_port=0, log_to_driver=False, ignore_reinit_error=True
    )
    yield
    ray.shutdown()


@pytest.fixture
def own_ray() -> Iterator[None]:
    """Shut down a Ray that the test starts, unless the session's was running before."""
    import ray

    had_one = ray.is_initialized()
    yield
    if not had_one:
        ray.shutdown()
