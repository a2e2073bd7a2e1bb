"""The folder of the tiny base model that ships with the package."""

from pft_core.policies import SHIPPED_BASE as SHIPPED_BASE
