"""Runs to export, as `pft train` leaves them."""

from pathlib import Path

import pytest

from pft_core.policies.model import load_base, save_full
from pft_core.policies.model_ref import ModelRef
from pft_core.policies.pretrained import load_tokenizer
from pft_core.prompts.rendering import Frame, PromptStyle, template_digest
from tests.builders import SPACE
from tests.serving import CPU, write_policy

STYLES = {
    "letter": PromptStyle(),
    "option": PromptStyle("after", "option"),
    "chat": PromptStyle("after", "option", Frame("<bos>user: ", "<eos>\nassistant: ", "")),
}


@pytest.fixture(scope="session", params=sorted(STYLES))
def styled_run(request: pytest.FixtureRequest, tiny_qwen2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA run in each prompt style."""
    folder = tmp_path_factory.mktemp("private_runs") / "run"
    return write_policy(folder, tiny_qwen2, seed=1, style=STYLES[request.param])


@pytest.fixture(scope="session")
def lora_run(tiny_qwen2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_policy(tmp_path_factory.mktemp("private_runs") / "run", tiny_qwen2, seed=1)


@pytest.fixture(scope="session")
def full_run(tiny_qwen2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fully fine-tuned run, trained on the first poles: the base with other weights."""
    folder = tmp_path_factory.mktemp("private_runs") / "full"
    model = load_base(str(tiny_qwen2), precision="fp32", gradient_checkpointing=False, device=CPU)
    state = {name: weight.detach() * 1.25 for name, weight in model.named_parameters()}
    save_full(model, load_tokenizer(str(tiny_qwen2)), state, folder / "weights")
    style = PromptStyle()
    digest = template_digest(style, SPACE)
    ModelRef(str(tiny_qwen2), None, "weights", style, SPACE, (0,), digest, "data", "config", None).save(folder)
    return folder
