"""The tiny base model that comes with the package, `pft_core.toyworld`'s: its name, and where it lies here."""

from pathlib import Path

TOYWORLD = "toyworld"  # the name of that model in a recipe
SHIPPED_BASE = Path(__file__).parents[1] / "toyworld" / "base_model"  # the folder of the tiny model in the package
