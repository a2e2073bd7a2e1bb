"""Which code runs: its digest, and the commit it stands at."""

import hashlib
import subprocess
from functools import lru_cache
from pathlib import Path

import pft_core
import pipelines

# Where the packages lie: a checkout, or the site-packages of an installed wheel.
CORE, PIPELINES = (Path(str(package.__file__)).resolve().parent for package in (pft_core, pipelines))


@lru_cache(maxsize=1)
def code_digest() -> str:
    """Return the digest of the installed code and wording; a checkout and the wheel made of it have the same."""
    sha = hashlib.sha256()
    for package, pattern in ((CORE, "*.py"), (CORE, "*.yaml"), (PIPELINES, "*.py")):
        for path in sorted(package.rglob(pattern)):
            sha.update(str(path.relative_to(package.parent)).encode() + path.read_bytes())
    return sha.hexdigest()[:16]


def commit() -> str | None:
    """The commit that the code stands at, marked where files differ from it; None where no repository holds it."""
    git = ["git", "-C", str(PIPELINES)]
    # An installed package may lie inside somebody else's repository, whose commit says nothing about it.
    tracked = subprocess.run([*git, "ls-files", "--error-unmatch", "__init__.py"], capture_output=True, check=False)
    if tracked.returncode:
        return None
    command = [*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or None
