"""Raw rows into hashed records: the first job."""

from typing import TYPE_CHECKING

from pft_core.lazy import lazy_exports

if TYPE_CHECKING:
    from pipelines.prepare.prepare_config import PrepareConfig, refuse_missing_inputs
else:
    __getattr__ = lazy_exports(__name__)
