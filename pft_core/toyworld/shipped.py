"""Where the tiny base model lies that comes with the package."""

from pft_core.policies import SHIPPED_BASE as SHIPPED_BASE
