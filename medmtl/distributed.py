"""torchrun or one process; the same calls either way. The process group is the only thing here that is global."""

import contextlib
import gc
import os
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as td
from torch import Tensor


@contextlib.contextmanager
def process_group() -> Iterator[None]:
    """Join the group that torchrun describes in the environment, and leave it at the end; without torchrun, nothing."""
    if "RANK" not in os.environ or td.is_initialized():
        yield
        return
    td.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
    finally:
        td.destroy_process_group()
        gc.collect()  # DDP's cycles still hold the group; gloo's threads abort the process if they outlive Python


def active() -> bool:
    """Whether more than this process takes part."""
    return td.is_available() and td.is_initialized()


def rank() -> int:
    """This process's number, 0 without a group."""
    return td.get_rank() if active() else 0


def local_rank() -> int:
    """This process's number on its machine: the index of its device."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def world() -> int:
    """The number of processes."""
    return td.get_world_size() if active() else 1


def total(tensor: Tensor) -> Tensor:
    """The sum over ranks, in place."""
    if active():
        td.all_reduce(tensor)
    return tensor


def mean(tensor: Tensor) -> Tensor:
    """The mean over ranks, in place."""
    return total(tensor).div_(world()) if active() else tensor


def from_rank_0(tensor: Tensor) -> Tensor:
    """Rank 0's tensor on every rank, in place."""
    if active():
        td.broadcast(tensor, src=0)
    return tensor


def agree(flag: bool) -> bool:
    """True on every rank when it is true on any."""
    if not active():
        return flag
    device = f"cuda:{local_rank()}" if td.get_backend() == "nccl" else "cpu"
    return bool(total(torch.tensor(float(flag), device=device)) > 0)


def gather(value: Any) -> list[Any]:
    """Every rank's plain value, in order of rank, on every rank."""
    if not active():
        return [value]
    values: list[Any] = [None] * world()
    td.all_gather_object(values, value)
    return values


def share(value: Any) -> Any:
    """Rank 0's plain value on every rank."""
    if not active():
        return value
    box = [value]
    td.broadcast_object_list(box, src=0)
    return box[0]
