"""Convert a GGUF file to a model folder in transformers' format: a program for a process of its own.

transformers reads such files (`from_pretrained(folder, gguf_file=...)`) but marks the model as quantized and then
refuses to save it, although its weights are plain float32 by then. The weights are therefore moved to a model that is
built from the same config without the mark.
"""

import copy
import sys
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any

from pft_core.errors import UserError
from pft_core.files import whole_folder, write_json
from pft_core.policies.gguf import CONVERSION_NAME
from pft_core.policies.pretrained import load_errors


def convert(file: Path, folder: Path, sha256: str) -> None:
    """Write the model, its tokenizer and the record of the conversion. Raises UserError if the file is not usable."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with load_errors(str(file)):
        record = _record(file, sha256)
        source = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
        auto: Any = AutoModelForCausalLM  # its annotations know no loading info
        read, loading = auto.from_pretrained(**source, dtype=torch.float32, output_loading_info=True)
        _refuse_missing(file, loading["missing_keys"])  # mismatched ones are an error of transformers
        tokenizer = AutoTokenizer.from_pretrained(**source)
        config = copy.deepcopy(read.config)
        del config.quantization_config
        model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        model.load_state_dict(read.state_dict())
    with whole_folder(folder) as unfinished:
        model.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
        write_json(unfinished / CONVERSION_NAME, record)


def _refuse_missing(file: Path, weights: Collection[str]) -> None:
    """Raise UserError if the file lacks weights, since transformers puts random ones in their place."""
    if weights:
        raise UserError(
            f"model={str(file)!r}: the file lacks {len(weights)} weights of the model, such as {min(weights)}: give "
            "the whole model; join the parts of a split file with `llama-gguf-split --merge`"
        )


def _record(file: Path, sha256: str) -> dict[str, Any]:
    from gguf import GGUFReader

    reader = GGUFReader(file)
    licence = reader.get_field("general.license")
    return {
        "file": file.name,
        "sha256": sha256,
        "weights": dict(Counter(tensor.tensor_type.name for tensor in reader.tensors)),
        "license": licence.contents() if licence else None,
        "converted_to": "float32",
    }


if __name__ == "__main__":
    try:
        convert(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
