"""Yardsticks: references that choose without a policy, such as by position."""

from typing import TYPE_CHECKING

from pft_core.lazy import lazy_exports

if TYPE_CHECKING:
    from pft_core.evaluation.yardsticks.registry import YARDSTICKS, Yardstick
else:
    __getattr__ = lazy_exports(__name__)
