"""Positional encodings that follow the longest text of a batch, made to follow each row's own length.

Dynamic NTK and longrope choose their frequencies by the largest position they are shown, and dynamic NTK remembers it:
a row's scores would depend on what else is in the batch, and on what was asked before. Which modules do so is not
known by name: they are asked.
"""

import inspect
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

FAR = 2**20  # a position beyond where any encoding changes its mind
_ANSWER = "follows_length"  # the attribute of a model that has been asked


@torch.no_grad()
def own_positions(model: nn.Module) -> bool:
    """Let every row of a batch have the positions it has alone; return whether any module looked at the whole batch.

    A model is asked once. Callers whose rows are padded hand over `position_ids` [R, L] in which no row counts further
    than its own last token.
    """
    if not hasattr(model, _ANSWER):
        looking = [module for module in model.modules() if _looks_at_the_batch(module)]
        for module in looking:
            module.forward = MethodType(_row_by_row, module)
        setattr(model, _ANSWER, bool(looking))
    return follows_length(model)


def follows_length(model: Any) -> bool:
    """Whether `own_positions` found that a model's positional encoding follows the length of a text."""
    return bool(getattr(model, _ANSWER, False))


def _looks_at_the_batch(module: nn.Module) -> bool:
    """Ask a module of the form forward(x, position_ids) for a row alone, and beside one that counts further."""
    parameters = list(inspect.signature(type(module).forward).parameters)
    if parameters[:3] != ["self", "x", "position_ids"]:
        return False
    like = next(module.buffers(), torch.zeros(1))
    x = torch.zeros(2, 3, 1, device=like.device)
    near = torch.arange(3, device=like.device)[None]
    layer_types = getattr(module, "layer_types", None) if "layer_type" in parameters else None
    for layer_type in layer_types or [None]:
        given = {} if layer_type is None else {"layer_type": layer_type}
        try:
            alone, beside = (_parts(module(x, ids, **given))[0] for ids in (near, torch.cat([near, near + FAR])))
            module(x, near, **given)  # what it remembers of the far row goes
        except (IndexError, RuntimeError, TypeError, KeyError):  # another kind of module
            return False
        if not torch.equal(alone[0], beside[0]):
            return True
    return False


def _row_by_row(module: Any, x: Tensor, position_ids: Tensor, *arguments: Any, **given: Any) -> Any:
    """Encode rows that count equally far together, each such group as if it were alone and the first."""
    forward = type(module).forward
    last_R = position_ids.amax(dim=-1)
    groups = [(last_R == last).nonzero().squeeze(1) for last in last_R.unique()]
    found = []
    for rows in groups:
        forward(module, x, torch.zeros_like(position_ids[:1, :1]), *arguments, **given)  # forget the group before
        found.append(forward(module, x, position_ids[rows], *arguments, **given))
    order = torch.cat(groups).argsort()
    parts = [torch.cat(same)[order] for same in zip(*(_parts(each) for each in found), strict=True)]
    return tuple(parts) if isinstance(found[0], tuple) else parts[0]


def _parts(encoded: Any) -> tuple[Tensor, ...]:
    return encoded if isinstance(encoded, tuple) else (encoded,)
