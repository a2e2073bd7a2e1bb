"""The served policies by name, and the fetching, caching and blending of their adapters."""

from typing import TYPE_CHECKING

from pft_core.lazy import lazy_exports

if TYPE_CHECKING:
    from pipelines.serve.policies.adapters import (
        AdapterCache,
        AdapterSource,
        LoadedAdapter,
        OtherContentError,
        UnreachableError,
        refuse_other_kinds,
    )
    from pipelines.serve.policies.catalog import Catalog, Policy, UnknownModelError
    from pipelines.serve.policies.policy_inputs import refuse_missing_policies
else:
    __getattr__ = lazy_exports(__name__)
