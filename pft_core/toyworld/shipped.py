"""Where the tiny base model lies that comes with the package."""

from pathlib import Path

SHIPPED_BASE = Path(__file__).parent / "base_model"
