"""The process on its machine: devices by name, and memory that is held."""

import platform
import subprocess
import sys

import pytest
import torch
from laws import refuses

from medmtl.process import device_named

FAULTS = """
import os, resource, torch
from medmtl.process import hold_memory
for name in [n for n in os.environ if n.startswith("MALLOC_")]:
    del os.environ[name]
held = hold_memory() if {hold} else False
torch.set_num_threads(1)
image, kernel = torch.rand(4, 3, 256, 256), torch.rand(64, 3, 3, 3, requires_grad=True)
def steps(count):
    for _ in range(count):
        torch.nn.functional.conv2d(image, kernel).relu().sum().backward()
steps(8)  # until there are blocks to use again
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
steps(4)
print(held, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_freed_blocks_are_used_again_instead_of_being_cleared_anew() -> None:
    """Page faults of four training steps with feature maps of 64 MiB: the kernel clears each of them, or hardly one."""
    counts = {}
    for hold in (False, True):
        done = subprocess.run([sys.executable, "-c", FAULTS.format(hold=hold)], capture_output=True, text=True)
        held, faults = done.stdout.split()
        assert held == str(hold), done.stderr
        counts[hold] = int(faults)
    assert counts[True] < counts[False] / 5, counts


def test_the_environment_has_the_last_word(monkeypatch: pytest.MonkeyPatch) -> None:
    from medmtl.process import hold_memory

    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    assert not hold_memory()


def test_devices_by_name() -> None:
    assert device_named("cpu") == torch.device("cpu")
    for name in ("gpu", "cpu:0", "cuda:x"):
        refuses("E-DEV-NAME", lambda name=name: device_named(name), says=name)
