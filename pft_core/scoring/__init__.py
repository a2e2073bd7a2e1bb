"""Turn batches of trees into log-probabilities: the only package that runs a model for likelihoods."""

from typing import TYPE_CHECKING

from pft_core.lazy import lazy_exports

if TYPE_CHECKING:
    from pft_core.scoring.scorer import Backend, BranchScorer
else:
    __getattr__ = lazy_exports(__name__)
