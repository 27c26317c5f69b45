"""This process on its machine: which device it computes on."""

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
