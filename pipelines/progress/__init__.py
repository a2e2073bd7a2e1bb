"""Progress of long work: one live bar on a terminal, a line now and then elsewhere."""

from typing import TYPE_CHECKING

from pft_core.lazy import lazy_exports

if TYPE_CHECKING:
    from pipelines.progress.place import Report
    from pipelines.progress.relay import Relay, forget_workers, receive, receiving, relayed
    from pipelines.progress.stages import counted, stage, streamed
else:
    __getattr__ = lazy_exports(__name__)
