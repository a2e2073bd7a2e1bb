"""What the Hub does not have, said within seconds: its loaders ask again and again."""

import difflib
from pathlib import Path
from typing import Literal

from pft_core.errors import UserError

HUB_SECONDS = 2.0


def refuse_unknown_to_the_hub(name: str, kind: Literal["model", "data set"], *, sought: str) -> None:
    """Raise UserError where the Hub has no such model or data set, or cannot be asked.

    It is asked once, for at most HUB_SECONDS; one that is slow has to be waited for. sought: where it was looked for
    already, and in vain, such as "no such folder here".
    """
    import httpx2
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    try:
        (HfApi().model_info if kind == "model" else HfApi().dataset_info)(name, timeout=HUB_SECONDS)
    except (GatedRepoError, httpx2.TimeoutException):
        return  # it is there, or time will tell
    except (RepositoryNotFoundError, HFValidationError):
        raise UserError(f"{sought}, and no such {kind} on the Hub.{_beside(name)}") from None
    except HfHubHTTPError:
        return
    except (httpx2.TransportError, OfflineModeIsEnabled) as error:
        fault = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UserError(f"{sought}, nor in the cache, and the Hub cannot be asked ({fault}).{_beside(name)}") from None


def refuse_unknown_data_set(name: str) -> None:
    """Raise UserError for a data set, OWNER/NAME or OWNER/NAME:CONFIG, that is neither in the cache nor on the Hub."""
    from huggingface_hub.constants import HF_HOME, HF_HUB_CACHE

    owner_and_name = name.partition(":")[0]
    folders = [Path(HF_HUB_CACHE) / f"datasets--{owner_and_name.replace('/', '--')}"]
    folders.append(Path(HF_HOME) / "datasets" / owner_and_name.replace("/", "___"))
    if not any(folder.is_dir() for folder in folders):
        refuse_unknown_to_the_hub(owner_and_name, "data set", sought=f"{name}: no such path here")


def _beside(name: str) -> str:
    """Return a hint at a file or folder with a like name, where there is one."""
    parent = Path(name).parent
    paths = [str(path) for path in parent.iterdir()] if parent.is_dir() else []
    near = difflib.get_close_matches(str(Path(name)), paths, n=1, cutoff=0.6)
    return f" Did you mean {near[0]!r}?" if near else ""
