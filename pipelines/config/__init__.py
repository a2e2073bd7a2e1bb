"""Run configs: recipes, all settings of a run, and the numbers derived from them."""

from typing import TYPE_CHECKING

from pft_core.lazy import lazy_exports

if TYPE_CHECKING:
    from pipelines.config.derived import resolved_config
    from pipelines.config.precision import warn_if_bf16_is_slow, with_precision
    from pipelines.config.recipes import (
        apply_changes,
        config_with_changes,
        import_plugins,
        load_config,
        place_plugins,
        recipe_path,
        source_of,
    )
    from pipelines.config.run_config import (
        EMBEDDED_DATA,
        JOB_NAME,
        TOYWORLD,
        RunConfig,
        ScalingSettings,
        refuse_unplaceable,
    )
    from pipelines.config.search_settings import Range, SearchSettings, refuse_idle_search, searchable
else:
    __getattr__ = lazy_exports(__name__)
