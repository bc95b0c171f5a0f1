"""Freed memory that the process keeps."""

import platform
import sys

import pytest

_TURNS, _MEGABYTES = 5, 64

# New pages of as many blocks, taken and freed one after another.
_COUNT = f"""
import resource
import sys
import numpy as np
from mixjax import memory

if sys.argv[1] == "keep":
    assert memory.keep()

def touch():
    np.empty({_MEGABYTES} * 2**20, np.uint8)[::4096] = 1

touch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range({_TURNS}):
    touch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")
@pytest.mark.parametrize(("choice", "is_kept"), [("keep", True), ("leave", False)])
def test_a_block_that_was_freed_is_used_again_without_new_pages(choice, is_kept, children):
    finished = children.run([sys.executable, "-c", _COUNT, choice])
    assert finished.returncode == 0, finished.stderr
    # The system may hand out huge pages: then there are few in any case, and nothing to see.
    new = int(finished.stdout)
    assert new < 100 if is_kept else new >= _TURNS
