"""Several pieces of a large drawing at once, each on one core.

Drawing is hundreds of small steps over tensors that fit the cache. Splitting every step over the cores, as torch does by
itself, costs more than it brings; giving each core pictures of its own brings nearly a core's worth.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from threading import Barrier
from typing import TypeVar

import torch

T = TypeVar("T")


@lru_cache(maxsize=1)
def _pool(workers: int) -> ThreadPoolExecutor:
    """Threads in which torch does not split its operations further."""
    ready = Barrier(workers + 1)

    def start() -> None:
        torch.set_num_threads(1)
        ready.wait()

    pool = ThreadPoolExecutor(workers, thread_name_prefix="phantoms", initializer=start)
    for _ in range(workers):
        pool.submit(int)
    ready.wait()
    torch.set_num_threads(workers)  # the setting of the threads has become that of the math library: put it back
    return pool


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # a forked process has none of its parent's threads


def spread(work: Callable[[T], None], pieces: Iterable[T]) -> None:
    """`work(piece)` for every piece, as many at a time as torch uses threads here; the first error is raised."""
    workers = torch.get_num_threads()
    if workers == 1:
        for piece in pieces:
            work(piece)
        return
    for _ in _pool(workers).map(work, pieces):
        pass
