"""The encoding section of a recipe."""

from typing import Literal

from pydantic import PositiveInt

from pft_core.settings import Settings


class EncodingSettings(Settings):
    """Token budget and masks of one side of a pair."""

    max_length: PositiveInt = 1024  # most tokens of a side; the paper's 512 cuts about half of the VCD answers
    # Tokens with a loss: those of the answer (exact), or the paper's trainer's choice (paper).
    mask: Literal["exact", "paper"] = "exact"
    # A pair above max_length is left out and counted, or its scenario is cut.
    overlong: Literal["reject", "cut_prompt"] = "reject"
