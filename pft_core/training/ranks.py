"""This process's place among those that train together."""

import torch.distributed as dist


def num_ranks() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def this_rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0
