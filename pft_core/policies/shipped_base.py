"""The name and the folder of the tiny base model that ships with the package (see `pft_core.toyworld`)."""

from pathlib import Path

TOYWORLD = "toyworld"
SHIPPED_BASE = Path(__file__).parents[1] / "toyworld" / "base_model"
