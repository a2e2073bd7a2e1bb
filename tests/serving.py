"""Helpers of the serving tests: tiny policies on disk, and a server in this process."""

import asyncio
import contextlib
import json
import re
import shutil
import socket
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2 as httpx
import numpy as np
import torch
import uvicorn

from pft_core.data.manifest import DatasetManifest
from pft_core.data.preferences import PreferenceSpace
from pft_core.data.records import Reject
from pft_core.evaluation.metrics.outcome import Outcome
from pft_core.policies.model import add_lora, load_base, save_adapter
from pft_core.policies.model_ref import ModelRef, adapter_digests
from pft_core.policies.pretrained import load_tokenizer
from pft_core.policies.settings import LoraSettings
from pft_core.prompts.rendering import PromptStyle, template_digest
from pipelines.evaluate.evaluation_request import EvaluateConfig, make_job, read_items, resolve_policy
from pipelines.evaluate.local_answers import ask_here
from pipelines.evaluate.policy import answerers
from pipelines.serve.engines.engine_builders import make_host
from pipelines.serve.http.admission import Admission
from pipelines.serve.http.routes import make_app
from pipelines.serve.metrics import Metrics
from pipelines.serve.policies.catalog import Catalog
from pipelines.serve.requests.gateway import Gateway
from pipelines.serve.serve_config import ServeConfig
from pipelines.validated_yaml import build
from tests.builders import SPACE

CPU = torch.device("cpu")
LETTERS = PromptStyle()


def write_policy(
    folder: Path,
    base: Path,
    *,
    seed: int,
    style: PromptStyle = LETTERS,
    space: PreferenceSpace = SPACE,
    r: int = 4,
) -> Path:
    """Write a LoRA policy with random weights, as `pft train` does: model_ref.json and adapter/."""
    model = add_lora(
        load_base(str(base), precision="fp32", gradient_checkpointing=False, device=CPU),
        LoraSettings(r=r, alpha=8, dropout=0.0, target_modules=["q_proj", "v_proj", "o_proj"]),
        seed=seed,
    )
    generator = torch.Generator().manual_seed(seed)
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    state = {n: 0.3 * torch.randn(p.shape, generator=generator) for n, p in trained.items()}
    save_adapter(model, state, folder / "adapter")
    digests, digest = adapter_digests(folder / "adapter"), template_digest(style, space)
    ModelRef(str(base), "adapter", None, style, space, (0, 1), digest, "data", "config", **digests).save(folder)
    return folder


def wide_base(folder: Path, tiny: Path) -> Path:
    """Write a random Qwen2 with heads of size 32, as vLLM's CPU attention needs, and the tiny model's tokenizer."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    shutil.copytree(tiny, folder)
    torch.manual_seed(0)
    config = Qwen2Config.from_pretrained(tiny, hidden_size=64, num_attention_heads=2, num_key_value_heads=1)
    Qwen2ForCausalLM(config).save_pretrained(folder)
    return folder


def serve_config(policy: Path, cache: Path, **settings: Any) -> ServeConfig:
    """Return a recipe for the transformers engine, since vLLM does not support heads as small as the tiny models'."""
    store = {"cache": str(cache), **settings.pop("store", {})}
    engine = {"name": "transformers", **settings.pop("engine", {})}
    return build(ServeConfig, {"policy": str(policy), "store": store, "engine": engine, **settings})


def found_offline(config: EvaluateConfig) -> tuple[list[Outcome], list[Reject]]:
    """Evaluate in this process, without Ray; return outcomes and rejects."""
    data = Path(config.data)
    manifest = DatasetManifest.load(data)
    items = read_items(data, manifest, forms=None, limit_per_axis=None)
    return ask_here(items, *answerers(make_job(config, resolve_policy(config, manifest))))


@dataclass
class LocalServer:
    """A gateway over the transformers engine in this process, behind real HTTP on a free port."""

    config: ServeConfig
    engine: Any = None
    url: str = ""
    metrics: Metrics = field(default_factory=Metrics)

    @contextlib.contextmanager
    def running(self) -> Iterator["LocalServer"]:
        catalog = Catalog(self.config, load_tokenizer)
        host = make_host(self.config, catalog.model, catalog.default.ref.template_digest, lora=True)
        self.engine = host.engine
        gateway = Gateway(self.config, catalog, host, self.metrics)
        app = make_app(self.config, gateway, self.metrics, Admission(self.config.scaling))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning"))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        self.url = f"http://127.0.0.1:{port}"
        wait_until_ready(self.url)
        try:
            yield self
        finally:
            server.should_exit = True
            thread.join(10)
            asyncio.run(self.engine.close())


def wait_until_ready(url: str, *, seconds: float = 60) -> None:
    """Poll /healthz."""
    import time

    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url}/healthz").status_code == 200:
                return
        time.sleep(0.05)
    raise TimeoutError(url)


def assert_same_outcomes(lines: Sequence[str], outcomes: Sequence[Outcome]) -> None:
    """Assert equal choices, and probabilities equal up to rounding, since sums differ between batches."""
    actual, expected = [json.loads(line) for line in lines], [json.loads(outcome.to_json()) for outcome in outcomes]
    likely = [[json.dumps(each.pop("probabilities", None)) for each in these] for these in (actual, expected)]
    assert actual == expected
    for ours, theirs in zip(*likely, strict=True):
        assert len(numbers_in(ours)) == len(numbers_in(theirs))
        assert np.allclose(numbers_in(ours), numbers_in(theirs), atol=2e-4)


def numbers_in(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"[\d.]+(?:e-?\d+)?", text)]
