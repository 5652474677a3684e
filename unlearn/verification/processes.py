"""The same function on several seeds, in this process or in several; the results are the same bytes either way."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Literal

import torch
from torch import nn

from unlearn.errors import InputError, WorkerError
from unlearn.progress import hide_bars, track
from unlearn.ranks import as_one_process, from_rank, this_rank, world_size
from unlearn.verification.retrain_store import as_bytes

Seed = int | None
Make = Callable[[Seed], nn.Module]
Processes = int | Literal["auto"]
_in_worker: Make | None = None


def allowed_processes(processes: Processes, tasks: int, device: torch.device) -> int:
    """Return how many processes to use for so many tasks.

    ``auto`` is as many as there are cores for, with the threads that torch uses now, and one on a GPU: two processes
    there share its memory and gain little. Several ranks are processes already.

    Raises:
        InputError: not a number above 0 and not ``auto``.

    >>> allowed_processes(3, 2, torch.device("cpu")), allowed_processes("auto", 5, torch.device("cuda"))
    (2, 1)
    """
    if world_size() > 1:
        if processes not in ("auto", 1):
            raise InputError(f"processes is {processes!r} and there are {world_size()} ranks; leave it out")
        return 1
    if processes == "auto":
        processes = 1 if device.type != "cpu" else max(1, _cores() // torch.get_num_threads())
    if not isinstance(processes, int) or isinstance(processes, bool) or processes < 1:
        raise InputError(f"processes is {processes!r}; give a number above 0, or 'auto'")
    return max(1, min(processes, tasks))


def _cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def each_seed(
    make: Make, seeds: Sequence[Seed], processes: int, description: str
) -> Iterator[tuple[Seed, nn.Module | bytes]]:
    """Yield (seed, the model that ``make`` returns for it), each as soon as it is there; from workers as bytes.

    Several ranks make one each at a time, and all yield what all have made, as bytes.

    Workers are started afresh (spawn) with this process's number of threads: sums in another number of parts would
    differ in the last bits.

    Raises:
        InputError: ``make`` can not be sent to another process.
        WorkerError: a worker was ended from outside; what was yielded before stands.
    """
    if world_size() > 1:
        yield from _by_ranks(make, seeds, description)
        return
    if processes == 1:
        for seed in track(seeds, description):
            yield seed, make(seed)
        return
    try:
        # as bytes: a tensor sent as it is would move the caller's storage into shared memory. Nothing is unpickled
        # that this process has not pickled
        sent = pickle.dumps(make)
    except Exception as error:  # what can not be pickled can raise anything
        raise InputError(
            f"the training can not be sent to another process ({type(error).__name__}: {error}); define model and "
            "train in a module of their own, or use processes=1"
        ) from error
    pool = ProcessPoolExecutor(processes, get_context("spawn"), _start_worker, (sent, torch.get_num_threads()))
    done = 0
    try:
        waiting = {pool.submit(_work, seed): seed for seed in seeds}
        for future in track(as_completed(waiting), description, total=len(seeds)):
            result = future.result()
            done += 1
            yield waiting[future], result
    except BrokenProcessPool as error:
        raise WorkerError(
            f"a worker process ended with {done} of {len(seeds)} {description} done: killed, out of memory, a model it "
            "can not import, or a script without `if __name__ == '__main__':`; run again, or with processes=1"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _by_ranks(make: Make, seeds: Sequence[Seed], description: str) -> Iterator[tuple[Seed, bytes]]:
    world, rank = world_size(), this_rank()
    for first in track(range(0, len(seeds), world), description):
        together, made = seeds[first : first + world], b""
        if rank < len(together):
            with as_one_process():
                made = as_bytes(make(together[rank]))
        for owner, seed in enumerate(together):
            yield seed, from_rank(owner, made)


def _start_worker(sent: bytes, threads: int) -> None:
    global _in_worker
    torch.set_num_threads(threads)
    hide_bars()
    _in_worker = pickle.loads(sent)


def _work(seed: Seed) -> bytes:
    if _in_worker is None:
        raise WorkerError("a worker process has no work; start the training again")
    return as_bytes(_in_worker(seed))
