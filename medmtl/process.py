"""This process on its machine: which device it computes on, and how it holds memory."""

import ctypes
import os
import sys

import torch

from medmtl import distributed as dist
from medmtl.errors import UserError


def device_named(name: str) -> torch.device:
    """``auto`` (this rank's GPU if there is one, else the CPU), ``cpu``, ``cuda`` or ``cuda:N``."""
    kind, _, index = name.partition(":")
    if kind not in ("auto", "cpu", "cuda") or (index and (kind != "cuda" or not index.isdigit())):
        raise UserError("E-DEV-NAME", f"unknown device {name!r}", "choose auto, cpu, cuda or cuda:N", where="device")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind == "cpu" or (kind == "auto" and not count):
        return torch.device("cpu")
    number = int(index) if index else dist.local_rank()
    if number >= count:
        raise UserError("E-DEV-CUDA", f"no device {name} is available", "choose auto or cpu", where="device")
    torch.cuda.set_device(number)
    return torch.device("cuda", number)


M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of mallopt(3)


def hold_memory() -> bool:
    """Keep freed memory for the next step instead of giving it back to the kernel; whether that was possible.

    glibc takes every block above 32 MiB from the kernel and returns it at once, so each training step pays anew for
    clearing the pages of its feature maps. That is a sixth to a third of the time of a run on two cores
    (``benchmarks/hold_memory.py``); what is computed is the same bit for bit. For work whose blocks have the same
    sizes again and again. Does nothing on another C library, or where ``MALLOC_*`` of the environment decides.
    """
    if not sys.platform.startswith("linux") or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # musl has none
        return False
    return bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, 2**31 - 1))
