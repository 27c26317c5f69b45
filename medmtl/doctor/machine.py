"""The room that there is: memory, cores, shared memory, disk, and locks that hold."""

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from medmtl.doctor.line import GIB, Line, graded

_SHM_GIB = 1.0  # torch hands batches from process to process through it; a container has 64 MiB unless told
_DISK_GIB = (1.0, 10.0)  # below the first nothing can be trained, below the second not much
_MEMORY_GIB = (2.0, 6.0)
_FILES = 1024  # open files: each loading process has a handful for every batch that is on its way
_INODES = 10_000
_CGROUP = Path("/sys/fs/cgroup")
_SHM = Path("/dev/shm")


def memory() -> Iterator[Line]:
    """What can be used now, and what a container allows."""
    machine = psutil.virtual_memory()
    limit = _number(_CGROUP / "memory.max")
    used = _number(_CGROUP / "memory.current") or 0
    total = min(machine.total, limit or machine.total)
    free = min(machine.available, limit - used) if limit else machine.available
    found = f"{free / GIB:.1f} of {total / GIB:.1f} GiB free" + (" in this container" if total == limit else "")
    yield graded("memory", found, free / GIB, _MEMORY_GIB, "end other programs; lower loader.batch_size, --jobs")


def threads() -> Iterator[Line]:
    """Cores, threads and open files that a process may have."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    allowed = _cpu_quota() or cores
    mine = torch.get_num_threads()
    found = f"{mine} threads of torch, {cores} cores" + (f", {allowed:g} of them allowed" if allowed < cores else "")
    if mine > max(1, allowed):
        yield Line("threads", "WARN", found, f"set OMP_NUM_THREADS={max(1, int(allowed))}: they wait for each other")
    else:
        yield Line("threads", "PASS", found)
    with contextlib.suppress(ImportError):  # no such limit on this system
        import resource

        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if 0 <= soft < _FILES:
            yield Line("open files", "WARN", f"{soft} at most", "ulimit -n 65536")
        else:
            yield Line("open files", "PASS", f"{soft} at most" if soft >= 0 else "no limit")


def shared_memory() -> Iterator[Line]:
    """Room for batches on their way from loading processes to the training."""
    remedy = "start the container with --shm-size=8g, or train with loader.workers=0"
    if not _SHM.is_dir():
        if sys.platform == "linux":
            yield Line("/dev/shm", "WARN", "there is none", remedy)
        return
    free = shutil.disk_usage(_SHM).free / GIB
    if not os.access(_SHM, os.W_OK):
        yield Line("/dev/shm", "FAIL", "it may not be written to", remedy)
    else:
        yield Line("/dev/shm", *(("WARN", f"{free:.2f} GiB free", remedy) if free < _SHM_GIB else
                                 ("PASS", f"{free:.1f} GiB free")))  # fmt: skip


def disk(folder: Path) -> Iterator[Line]:
    """Room in the current folder, where runs go, and in the folder for temporary files."""
    for name, place in (("disk here", folder), ("disk for temporary files", Path(tempfile.gettempdir()))):
        if not os.access(place, os.W_OK):
            yield Line(name, "FAIL", "it may not be written to", "work in a folder of your own (cd, or TMPDIR)")
            continue
        free = shutil.disk_usage(place).free / GIB
        yield graded(name, f"{free:.1f} GiB free", free, _DISK_GIB, "free space, or work on another disk")
        if hasattr(os, "statvfs"):
            room = os.statvfs(place)
            if room.f_files and room.f_favail < _INODES:
                yield Line(name, "WARN", f"room for {room.f_favail:,} more files only", "remove files")


def locks(folder: Path) -> Iterator[Line]:
    """Whether a locked file stays locked, and a finished file takes its place at once: some network disks do neither.

    Two trainings in one folder, and MLflow's data base, depend on it.
    """
    remedy = "work in a folder on a local disk: two jobs here could write to the same files"
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".medmtl-doctor-") as scratch:
            path = Path(scratch) / "lock"
            with FileLock(path, timeout=0):
                try:
                    with FileLock(path, timeout=0, is_singleton=False):
                        yield Line("locks", "FAIL", "a file can be locked twice", remedy)
                        return
                except Timeout:
                    pass
            (Path(scratch) / "new").write_bytes(b"new")
            (Path(scratch) / "new").replace(Path(scratch) / "old")
    except OSError as error:
        yield Line("locks", "FAIL", f"a file cannot be locked ({os.strerror(error.errno or 0)})", remedy)
        return
    yield Line("locks", "PASS", "files in this folder can be locked and replaced")


def _number(path: Path) -> int | None:
    """The number in a file of the control group; None where there is no limit."""
    with contextlib.suppress(OSError, ValueError):
        return int(path.read_text())
    return None


def _cpu_quota() -> float | None:
    """Cores that the control group allows (``cpu.max``: microseconds of each period)."""
    with contextlib.suppress(OSError, ValueError):
        quota, period = (_CGROUP / "cpu.max").read_text().split()
        return int(quota) / int(period)
    return None
