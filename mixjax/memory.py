"""Memory that a process has freed, kept for its next step."""

import ctypes

# Of glibc's malloc.h. No array is so large that it is given back at once, nothing at the end of the
# heap is either, and all threads share one heap, since only the first may grow without bounds.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8
_NEVER = 2**31 - 1


def keep() -> bool:
    """Tells the system's allocator to keep what is freed, for the whole process.

    By itself glibc gives a block of more than 32 MB back to the system when it is freed. What a
    compiled program needs is one block: a training step on a CPU gets it anew, page by page, each
    of them filled with zeros. Hamm's steps of the paper's size take less time without. The programs
    of `experiments` and `benchmarks` keep it; in a process of anybody's own it is a choice, for the
    process stays as large as it once was.

    Returns:
      Whether it was done: only glibc, of Linux, is known to take it.

    Example:
      >>> from mixjax import memory
      >>> is_kept = memory.keep()
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another library, or another system
        return False
    wanted = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, _NEVER), (_M_ARENA_MAX, 1))
    return all([mallopt(option, value) == 1 for option, value in wanted])
