"""The processes of one run: how each joins the others, what they agree on, and who of them writes."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist

from backend.trainers.process import STORE_FD_VARIABLE, is_launched

Item = TypeVar("Item")
# The first process writes a large checkpoint while the others wait for it.
_PATIENCE = timedelta(minutes=30)


def join(device: str) -> None:
    """Enter the group that the environment describes; nothing to do for a process by itself.

    The variables are those that `accelerate launch` and torchrun set too. From our launcher the first process inherits
    a socket that listens on loopback; the library's own listens on all interfaces.
    """
    if not is_launched() or dist.is_initialized():
        return
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    on_gpu = device != "cpu" and torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    backend = "cuda:nccl,cpu:gloo" if on_gpu else "gloo"
    inherited = os.environ.get(STORE_FD_VARIABLE)
    if inherited is None:
        dist.init_process_group(backend, timeout=_PATIENCE)
        return
    store = dist.TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        size,
        is_master=rank == 0,
        timeout=_PATIENCE,
        master_listen_fd=int(inherited) if rank == 0 else None,
    )
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=_PATIENCE)


def count() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def mine() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_first() -> bool:
    """The first process alone writes events, checkpoints and what the run delivers."""
    return mine() == 0


def any_of(*flags: bool) -> tuple[bool, ...]:
    """Each flag as soon as one process has set it: what all act upon, all must have agreed upon."""
    if count() == 1:
        return flags
    both = torch.tensor(flags, dtype=torch.int64)
    dist.all_reduce(both, op=dist.ReduceOp.MAX)
    return tuple(bool(item) for item in both.tolist())


def most(value: int) -> int:
    """The highest of the processes' values."""
    if count() == 1:
        return value
    highest = torch.tensor(value, dtype=torch.int64)
    dist.all_reduce(highest, op=dist.ReduceOp.MAX)
    return int(highest.item())


def summed(*values: float) -> tuple[float, ...]:
    """The sums over all processes, in 64 bits."""
    if count() == 1:
        return values
    sums = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(sums)
    return tuple(sums.tolist())


def from_first(find: Callable[[], Item]) -> Item:
    """What the first process finds, for all."""
    box: list[Any] = [find() if is_first() else None]
    if count() == 1:
        return cast(Item, box[0])
    dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
    return cast(Item, box[0])


def gathered(value: Item) -> list[Item]:
    """The processes' values in the order of their numbers."""
    if count() == 1:
        return [value]
    box: list[Any] = [None] * count()
    dist.all_gather_object(box, value)
    return box


def dealt(items: Sequence[Item]) -> list[tuple[Item, bool]]:
    """This process's share of `items`, each with whether it counts.

    All get as many, because they compute in step: who has less gets the first item again, which does not count.
    """
    share = [(item, True) for item in items[mine() :: count()]]
    needed = -(-len(items) // count())
    return share + [(items[0], False)] * (needed - len(share))
