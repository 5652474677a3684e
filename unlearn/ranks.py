"""Ranks: the processes of one job, which share rows out among them and add up what they find.

All ranks run the same program on the same data. What goes over rows takes this rank's :func:`own_span` of them and
calls :func:`sum_over_ranks` afterwards; what has one owner (the score of a row, the basis of a layer) is zero on the
others, so that it is added up too. After that all ranks hold the same bytes and go on alike. What is not shared out is
computed by every rank. Files are read by all and written :func:`on_first_rank`.

One process is the case of one rank: without :func:`start_ranks` nothing here does anything, also in a process group
that a script made for purposes of its own.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from unlearn.errors import InputError, UnlearnError, WorkerError

if TYPE_CHECKING:
    from torch import Tensor

ENDED = (
    "another rank ended (killed, out of memory, or by an error of its own): what was finished stays as it is; start "
    "the same command again, `recipe run` with --resume"
)
_FROM_TORCHRUN = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_BUCKET = 16 << 20  # bytes
_PATIENCE = datetime.timedelta(days=7)  # one rank trains while the others wait; a rank that dies is seen at once


@dataclass(frozen=True)
class _Job:
    """What :func:`start_ranks` found: rank, ranks, a group for tensors on the CPU, a store where torchrun has one."""

    rank: int
    world: int
    cpu_group: Any
    store: Any


_job: _Job | None = None
_APART: ContextVar[bool] = ContextVar("apart", default=False)


def asked_for() -> bool:
    """Whether this process is one of several that torchrun started."""
    return all(name in os.environ for name in _FROM_TORCHRUN) and os.environ["WORLD_SIZE"] != "1"


def start_ranks() -> None:
    """Join the other ranks: those of the process group where a script made one, else those that torchrun started.

    From here on all ranks must make the same calls. Without either this is one process, and stays so.

    Raises:
        InputError: the ranks differ in torch or in the number of its threads, so last bits and control flow could.
    """
    global _job
    if _job is not None:
        return
    import torch
    from torch import distributed as dist

    store = None
    if not dist.is_initialized():
        if not asked_for():
            return
        from torch.distributed.distributed_c10d import PrefixStore
        from torch.distributed.rendezvous import rendezvous

        if torch.accelerator.is_available():
            torch.accelerator.set_device_index(int(os.environ.get("LOCAL_RANK", "0")))
        store, rank, world = next(iter(rendezvous("env://", timeout=_PATIENCE)))
        dist.init_process_group(store=PrefixStore("group", store), rank=rank, world_size=world, timeout=_PATIENCE)
    _job = _Job(dist.get_rank(), dist.get_world_size(), dist.new_group(backend="gloo", timeout=_PATIENCE), store)
    if _job.rank:
        from unlearn.progress import hide_bars  # rich, which help does not wait for

        hide_bars()
    engine = f"torch {torch.__version__}, {torch.get_num_threads()} threads"
    ranks_agree("torch or number of threads", engine, "use one environment, and OMP_NUM_THREADS of one value")


def stop_ranks() -> None:
    """Leave the job: this process is one process again. The process group of a script stays."""
    global _job
    if _job is None:
        return
    from torch import distributed as dist

    dist.destroy_process_group(None if _job.store is not None else _job.cpu_group)
    _job = None


def world_size() -> int:
    """Return how many ranks share the work; 1 in one process and :func:`as_one_process`.

    >>> world_size(), this_rank()
    (1, 0)
    """
    return 1 if _job is None or _APART.get() else _job.world


def this_rank() -> int:
    """Return which of them this is; 0 in one process and :func:`as_one_process`."""
    return 0 if _job is None or _APART.get() else _job.rank


def own_span(count: int) -> range:
    """Return which of so many items are this rank's: neighbours, one more or less than another rank has.

    >>> own_span(5)
    range(0, 5)
    """
    return range(count * this_rank() // world_size(), count * (this_rank() + 1) // world_size())


def owners(costs: list[float]) -> list[int]:
    """Return a rank for each task, so that none has much more to do than another: the dearest first, to the idlest.

    >>> owners([1.0, 8.0])
    [0, 0]
    """
    load = [0.0] * world_size()
    found = [0] * len(costs)
    for task in sorted(range(len(costs)), key=lambda k: -costs[k]):
        found[task] = load.index(min(load))
        load[found[task]] += costs[task]
    return found


@contextlib.contextmanager
def as_one_process() -> Iterator[None]:
    """Work as one process inside: nothing is shared out or waited for, and this rank writes its own files."""
    token = _APART.set(True)
    try:
        yield
    finally:
        _APART.reset(token)


def sum_over_ranks(*tensors: Tensor) -> None:
    """Replace each tensor by its sum over the ranks, the same bytes on all of them; on its device, by its backend.

    Small ones go together: a call has a price of its own.

    Raises:
        WorkerError: another rank has ended.
    """
    if _job is None or world_size() == 1:
        return
    import torch
    from torch import distributed as dist

    for bucket in _buckets(tensors):
        sent = bucket[0]
        if len(bucket) > 1 or not sent.is_contiguous():
            sent = torch.cat([tensor.reshape(-1) for tensor in bucket])
        with _others_alive():
            dist.all_reduce(sent, group=_job.cpu_group if sent.device.type == "cpu" else None)
        if sent is not bucket[0]:
            sizes = [tensor.numel() for tensor in bucket]
            for tensor, part in zip(bucket, torch.split(sent, sizes), strict=True):
                tensor.copy_(part.view(tensor.shape))


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Yield neighbours of one type and device together, as many as fit."""
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        unlike = bucket and (bucket[0].dtype, bucket[0].device) != (tensor.dtype, tensor.device)
        if bucket and (unlike or size + tensor.nbytes > _BUCKET):
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.nbytes
    if bucket:
        yield bucket


def from_rank(owner: int, data: bytes) -> bytes:
    """Return the bytes that this rank gave; what the others gave is left aside.

    >>> from_rank(0, b"abc")
    b'abc'
    """
    if _job is None or world_size() == 1:
        return data
    import torch
    from torch import distributed as dist

    with _others_alive():
        length = torch.tensor([len(data)])
        dist.broadcast(length, owner, group=_job.cpu_group)
        sent = torch.empty(int(length), dtype=torch.uint8)
        if this_rank() == owner and data:
            sent = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        dist.broadcast(sent, owner, group=_job.cpu_group)
    return sent.numpy().tobytes()


def ranks_agree(what: str, value: str, remedy: str) -> None:
    """Refuse to go on where a rank has another value than rank 0.

    Raises:
        InputError: which rank it is; on all ranks.
    """
    if world_size() == 1:
        return
    digest = hashlib.sha256(value.encode()).digest()
    found = [from_rank(owner, digest) for owner in range(world_size())]
    other = [owner for owner, theirs in enumerate(found) if theirs != found[0]]
    if other:
        raise InputError(f"rank {other[0]} has another {what} than rank 0, and all ranks must have the same; {remedy}")


def on_first_rank(work: Callable[[], object]) -> None:
    """Let rank 0 do what must be done once, such as writing a file, when all have come here; the others wait.

    So a file is never replaced before all ranks have read it, nor read before it is there.

    Raises:
        UnlearnError: what ``work`` raised, on all ranks.
    """
    if world_size() == 1:
        work()
        return
    for owner in range(world_size()):
        from_rank(owner, b"")
    failed: UnlearnError | None = None
    if this_rank() == 0:
        try:
            with as_one_process():
                work()
        except UnlearnError as error:
            failed = error
    said = from_rank(0, b"" if failed is None else f"{type(failed).__name__}\n{failed}".encode()).decode()
    if failed is not None:
        raise failed
    if said:
        kind, _, message = said.partition("\n")
        kinds = {one.__name__: one for one in UnlearnError.__subclasses__()}
        raise kinds.get(kind, WorkerError)(message)


def only_one_process(what: str) -> None:
    """Refuse several ranks for what does not share its work out.

    Raises:
        InputError: there are several.
    """
    if world_size() > 1:
        raise InputError(
            f"{what} runs in one process, and {world_size()} ranks were started; start it without torchrun"
        )


def speaks() -> bool:
    """Whether this rank is to say why the job ended: the first that asks."""
    if _job is None or _job.store is None:
        return True
    try:
        return bool(_job.store.add("spoken", 1) == 1)
    except RuntimeError:  # the store ended with the rank that held it
        return True


@contextlib.contextmanager
def _others_alive() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise WorkerError(ENDED) from error
