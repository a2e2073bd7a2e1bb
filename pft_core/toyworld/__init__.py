"""Tiny base models and the code that trains them: one for the demo, others on the texts of a data set."""

from typing import TYPE_CHECKING

from pft_core.lazy import lazy_exports

if TYPE_CHECKING:
    from pft_core.toyworld.shipped import SHIPPED_BASE
    from pft_core.toyworld.text_base import make_text_base
else:
    __getattr__ = lazy_exports(__name__)
