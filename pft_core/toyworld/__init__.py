"""The embedded data set: little dilemmas made from word lists, and a tiny base model that can learn their axes."""

from pft_core.toyworld.scenarios import Split, generate

__all__ = ["Split", "generate"]
