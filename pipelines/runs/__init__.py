"""The run folders below a storage folder: listed, shown one by one, and compared."""

from typing import TYPE_CHECKING

from pft_core.lazy import lazy_exports

if TYPE_CHECKING:
    from pipelines.runs.folders import run_place
else:
    __getattr__ = lazy_exports(__name__)
