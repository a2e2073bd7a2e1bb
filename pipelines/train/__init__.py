"""The `train` job: paired fine-tuning with Ray Train."""

from typing import TYPE_CHECKING

from pft_core.lazy import lazy_exports

if TYPE_CHECKING:
    from pipelines.train.encoding import encode_if_large, encode_layers
    from pipelines.train.fitting import build_and_fit
    from pipelines.train.inputs import refuse_missing_inputs
    from pipelines.train.local_training import train_here
    from pipelines.train.plan import dry_run
    from pipelines.train.publish import policy_kind
    from pipelines.train.resolved_run import RunLayers, resolve
    from pipelines.train.trainer import worker_environment
    from pipelines.train.training_summary import cautions_of, next_command, print_cautions
else:
    __getattr__ = lazy_exports(__name__)
