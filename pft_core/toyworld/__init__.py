"""Tiny base models, made here, that can learn the embedded data set (a source of `pft_core.data`)."""

from typing import TYPE_CHECKING

from pft_core.lazy import lazy_exports

if TYPE_CHECKING:
    from pft_core.toyworld.shipped import SHIPPED_BASE
    from pft_core.toyworld.text_base import make_text_base
else:
    __getattr__ = lazy_exports(__name__)
