"""The tiny base model that comes with the package, `pft_core.toyworld`'s: its name, and where it lies here."""

from pathlib import Path

TOYWORLD = "toyworld"
SHIPPED_BASE = Path(__file__).parents[1] / "toyworld" / "base_model"
