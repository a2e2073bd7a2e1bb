"""The weights of a policy in a folder of their own, as peft, transformers and vLLM load them."""

import shutil
from pathlib import Path

from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME

from pft_core.files import read_json, write_json
from pft_core.policies import ModelRef, public_name, write_merged
from pipelines.export.export_config import Kind


def write_weights(ref: ModelRef, kind: Kind, folder: Path) -> None:
    """Write the weights of a policy into an empty folder. Raises UserError if an adapter does not fit its base."""
    if kind == "adapter":
        copy_adapter(Path(str(ref.adapter)), public_name(ref.base), folder)
    elif kind == "merged":
        write_merged(ref.base, Path(str(ref.adapter)), folder)
    else:
        shutil.copytree(str(ref.weights), folder, dirs_exist_ok=True)


def copy_adapter(adapter: Path, base: str, folder: Path) -> None:
    """Copy an adapter, and name its base in the config, in which earlier versions wrote a private path."""
    shutil.copyfile(adapter / SAFETENSORS_WEIGHTS_NAME, folder / SAFETENSORS_WEIGHTS_NAME)
    config = read_json(adapter / CONFIG_NAME, what="an adapter's config")
    write_json(folder / CONFIG_NAME, config | {"base_model_name_or_path": base})
