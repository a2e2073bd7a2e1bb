"""Digest of the running code."""

import hashlib
from functools import lru_cache
from pathlib import Path

import pft_core
import pipelines

# Folders of the packages: in a checkout, or in the site-packages of an installed wheel.
CORE, PIPELINES = (Path(str(package.__file__)).resolve().parent for package in (pft_core, pipelines))


@lru_cache(maxsize=1)
def code_digest() -> str:
    """Return the digest of the installed code and prompts; a checkout and its wheel have the same."""
    sha = hashlib.sha256()
    for package, pattern in ((CORE, "*.py"), (CORE, "*.yaml"), (PIPELINES, "*.py")):
        for path in sorted(package.rglob(pattern)):
            sha.update(str(path.relative_to(package.parent)).encode() + path.read_bytes())
    return sha.hexdigest()[:16]
