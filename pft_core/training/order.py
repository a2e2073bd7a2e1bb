"""The order of training examples: a pure function of (seed, epoch, position).

No iterator has state, so resuming, auditing and changing the number of ranks are arithmetic. Rows are permuted on two
levels, first blocks of rows and then rows inside a window of blocks, so a run reads its shards almost sequentially.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

ROWS_PER_BLOCK = 1024
BLOCKS_PER_WINDOW = 16
_GOLDEN_GAMMA = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class DataOrder:
    """The order of a whole run over `num_examples`; positions continue from one epoch to the next.

    `shuffle=False` keeps file order, which the golden trajectories need.
    """

    num_examples: int
    seed: int
    shuffle: bool = True
    rows_per_block: int = ROWS_PER_BLOCK
    blocks_per_window: int = BLOCKS_PER_WINDOW

    def example_index(self, position: int) -> int:
        """Return the index of the example at this position of the run; each epoch visits every index once."""
        epoch, within = divmod(position, self.num_examples)
        return int(epoch_order(self, epoch)[within]) if self.shuffle else within

    def step_indices(self, step: int, *, examples_per_step: int, total_examples: int) -> list[int]:
        """Return the example indices of an optimizer step; the last step of a run may hold fewer examples."""
        start = step * examples_per_step
        return [self.example_index(p) for p in range(start, min(start + examples_per_step, total_examples))]


@lru_cache(maxsize=2)
def epoch_order(order: DataOrder, epoch: int) -> NDArray[np.int64]:
    """Return the permutation [num_examples] of one epoch."""
    rows = np.arange(order.num_examples, dtype=np.int64)
    num_blocks = -(-order.num_examples // order.rows_per_block)
    block_rank = np.empty(num_blocks, dtype=np.int64)
    block_rank[_hash(np.arange(num_blocks), order.seed, 2 * epoch).argsort(kind="stable")] = np.arange(num_blocks)
    window = block_rank[rows // order.rows_per_block] // order.blocks_per_window
    permuted: NDArray[np.int64] = rows[np.lexsort((_hash(rows, order.seed, 2 * epoch + 1), window))]
    return permuted


def _hash(values: NDArray[np.int64], seed: int, stream: int) -> NDArray[np.uint64]:
    # SplitMix64: numpy's generators may change their streams between versions, but an order must never change.
    with np.errstate(over="ignore"):
        start = _mix(np.uint64(seed) * _GOLDEN_GAMMA + np.uint64(stream))
        return _mix(start + (values.astype(np.uint64) + np.uint64(1)) * _GOLDEN_GAMMA)


def _mix(z: NDArray[np.uint64] | np.uint64) -> NDArray[np.uint64]:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(z ^ (z >> np.uint64(31)))
