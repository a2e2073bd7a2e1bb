"""Positional encodings that depend on the longest row of a batch, changed to depend on each row's own length.

Dynamic NTK and longrope choose their frequencies by the largest position in the batch, and dynamic NTK remembers it. A
row's scores would therefore depend on the other rows, and on earlier batches. Modules that do so have no common name,
so each module is probed.
"""

import inspect
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

FAR = 2**20  # a position beyond every length at which an encoding changes its frequencies
_PROBE_RESULT = "follows_length"  # the attribute of a model that has been probed


@torch.no_grad()
def own_positions(model: nn.Module) -> bool:
    """Make every row of a batch get the encoding that it has alone; return whether any module depended on the batch.

    A model is probed once. For padded rows, callers pass `position_ids` [R, L] in which no row counts beyond its own
    last token.
    """
    if not hasattr(model, _PROBE_RESULT):
        dependent = [module for module in model.modules() if _depends_on_the_batch(module)]
        for module in dependent:
            module.forward = MethodType(_row_by_row, module)
        setattr(model, _PROBE_RESULT, bool(dependent))
    return follows_length(model)


def follows_length(model: Any) -> bool:
    """Return whether a model's positional encoding depends on the length of a text, as found by `own_positions`."""
    return bool(getattr(model, _PROBE_RESULT, False))


def _depends_on_the_batch(module: nn.Module) -> bool:
    """Return whether a module with forward(x, position_ids) encodes a row differently beside a longer one."""
    parameters = list(inspect.signature(type(module).forward).parameters)
    if parameters[:3] != ["self", "x", "position_ids"]:
        return False
    like = next(module.buffers(), torch.zeros(1))
    x = torch.zeros(2, 3, 1, device=like.device)
    near = torch.arange(3, device=like.device)[None]
    layer_types = getattr(module, "layer_types", None) if "layer_type" in parameters else None
    for layer_type in layer_types or [None]:
        options = {} if layer_type is None else {"layer_type": layer_type}
        try:
            alone, beside = (_parts(module(x, ids, **options))[0] for ids in (near, torch.cat([near, near + FAR])))
            module(x, near, **options)  # so that it forgets the far row
        except (IndexError, RuntimeError, TypeError, KeyError):  # another kind of module
            return False
        if not torch.equal(alone[0], beside[0]):
            return True
    return False


def _row_by_row(module: Any, x: Tensor, position_ids: Tensor, *arguments: Any, **options: Any) -> Any:
    """Encode rows with equal last positions together, and each such group as if it were the first batch."""
    forward = type(module).forward
    last_R = position_ids.amax(dim=-1)
    groups = [(last_R == last).nonzero().squeeze(1) for last in last_R.unique()]
    encoded = []
    for rows in groups:
        forward(module, x, torch.zeros_like(position_ids[:1, :1]), *arguments, **options)  # forget the last group
        encoded.append(forward(module, x, position_ids[rows], *arguments, **options))
    order = torch.cat(groups).argsort()
    parts = [torch.cat(same)[order] for same in zip(*(_parts(each) for each in encoded), strict=True)]
    return tuple(parts) if isinstance(encoded[0], tuple) else parts[0]


def _parts(encoded: Any) -> tuple[Tensor, ...]:
    return encoded if isinstance(encoded, tuple) else (encoded,)
