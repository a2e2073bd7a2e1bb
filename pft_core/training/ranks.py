"""This process's rank, and the number of processes that train together."""


def num_ranks() -> int:
    """Return the number of ranks, 1 without torch.distributed."""
    import torch.distributed as dist

    return dist.get_world_size() if dist.is_initialized() else 1


def this_rank() -> int:
    """Return the rank of this process, 0 without torch.distributed."""
    import torch.distributed as dist

    return dist.get_rank() if dist.is_initialized() else 0
