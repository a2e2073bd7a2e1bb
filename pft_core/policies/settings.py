"""The policy section of a recipe."""

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from pft_core.settings import Settings

Precision = Literal["bf16", "fp32"]  # of a model's weights
PrecisionOrAuto = Precision | Literal["auto"]  # auto: by what the device has instructions for


def settled(precision: PrecisionOrAuto) -> Precision:
    """Return a precision for which `auto` was replaced, as a job does before it computes the run key."""
    assert precision != "auto", "replace precision=auto before a model is loaded"
    return precision


class LoraSettings(Settings):
    """Settings of a low-rank adapter; the defaults are the paper's."""

    r: int = Field(default=8, ge=1, le=65_536)  # rank of the adapter
    alpha: PositiveInt = 32  # the adapter's output is scaled by alpha / r
    dropout: float = Field(default=0.05, ge=0, lt=1)  # dropout of the adapter's input, in training
    # Linear layers that get an adapter, by name, or all-linear.
    target_modules: Annotated[list[str], Field(min_length=1)] | Literal["all-linear"] = Field(
        default=["q_proj", "k_proj", "v_proj", "o_proj"]
    )
