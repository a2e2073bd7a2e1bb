"""Export of a trained policy: weights that other tools load, with a model card."""

from typing import TYPE_CHECKING

from pft_core.lazy import lazy_exports

if TYPE_CHECKING:
    from pipelines.export.export_config import ExportConfig, refuse_missing_inputs
else:
    __getattr__ = lazy_exports(__name__)
