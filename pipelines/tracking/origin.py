"""Origin of a run: commit of the code, user and command."""

import getpass
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

from pipelines.tracking.mlflow_run import mask_credentials

PACKAGE = Path(__file__).resolve().parents[1]  # in a checkout, or in the site-packages of an installed wheel
PROGRAMS = ("pft", "cli.py", "__main__.py")
LONGEST_SOURCE = 500  # characters


def origin_tags() -> dict[str, str]:
    """Return commit, user and source as the tags that MLflow's pages show, without unknown ones."""
    tags = {"mlflow.user": user(), "mlflow.source.git.commit": commit()}
    known = {name: value for name, value in tags.items() if value}
    return {**known, "mlflow.source.name": command(sys.argv), "mlflow.source.type": "LOCAL"}


def user() -> str | None:
    """Return the user's name; None in a container without a name for the user ID."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return None


def command(words: list[str]) -> str:
    """Return the command line without credentials; only the program on a worker, whose arguments are Ray's."""
    own = words[1:] if Path(words[0]).name in PROGRAMS else []
    return mask_credentials(" ".join(["pft", *own]))[:LONGEST_SOURCE]


@lru_cache(maxsize=1)
def commit() -> str | None:
    """Return the commit of the code, marked if files differ from it; None outside a repository."""
    git = ["git", "-C", str(PACKAGE)]
    # An installed package may lie inside another repository, whose commit is meaningless here.
    tracked = subprocess.run([*git, "ls-files", "--error-unmatch", "__init__.py"], capture_output=True, check=False)
    if tracked.returncode:
        return None
    command = [*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or None
