"""What the C library does with the memory of tensors that are freed."""

import ctypes

M_MMAP_THRESHOLD = -3  # of glibc's malloc.h
LARGE_BYTES = 2**20


def map_large_blocks() -> None:
    """Give each large tensor on the CPU pages of its own, which go back when it is freed; only glibc knows how.

    Left alone, glibc puts blocks of up to 32 MB into one heap, where what a forward keeps lies between what it has
    freed: the memory of a training then comes to about twice what its tensors hold. Pages that come again cost a step
    a fifth to a quarter more CPU time.
    """
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(M_MMAP_THRESHOLD, LARGE_BYTES)
