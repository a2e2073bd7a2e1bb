"""Tests that the README's serving example works as printed, except for the port."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pft_core.data.preferences import load_space
from tests.serving import LocalServer, serve_config, write_policy

README = (Path(__file__).resolve().parents[3] / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def server(tiny_qwen2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    root = tmp_path_factory.mktemp("readme")
    policy = write_policy(root / "policy", tiny_qwen2, seed=0, space=load_space("toyworld"))
    with LocalServer(serve_config(policy, root / "cache", engine={"name": "transformers"})).running() as running:
        yield running


def readme_block(pattern: str, server: LocalServer) -> str:
    match = re.search(pattern, README, re.DOTALL)
    assert match, pattern
    return match[1].replace("http://127.0.0.1:8000", server.url)


def test_the_curl_line(server: LocalServer) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    line = readme_block(r"```\n(curl [^\n]*/v1/choose[^\n]*)\n```", server)
    done = subprocess.run(["bash", "-c", f"{line} -s"], capture_output=True, text=True, check=True, timeout=60)
    assert json.loads(done.stdout)["letter"] in ("A", "B")
