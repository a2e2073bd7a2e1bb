"""The name and the folder of the tiny base model that ships with the package (see `pft_core.toyworld`)."""

from pathlib import Path

TOYWORLD = "toyworld"  # the name of that model in a recipe
SHIPPED_BASE = Path(__file__).parents[1] / "toyworld" / "base_model"  # the folder of the tiny model in the package
