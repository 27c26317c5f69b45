"""The output folder of a job: its own, locked, and tidy."""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from medmtl.errors import UserError
from medmtl.files import disk_errors, sweep_temporaries

LEDGER = "cases.jsonl"
_LOCK = ".lock"


def check_output(out: Path, *, code: str, where: str) -> None:
    """Refuse a path that is no folder, and a folder that holds something else than an earlier job's results."""
    if out.exists() and not out.is_dir():
        raise UserError(code, "not a folder", "choose another path", where=where)
    if out.is_dir() and not (out / LEDGER).exists() and any(not path.name.startswith(".") for path in out.iterdir()):
        raise UserError(
            code,
            f"the folder holds other files and no {LEDGER}",
            "choose an empty or a new folder",
            where=where,
        )


@contextlib.contextmanager
def locked(out: Path, *, code: str, where: str, held: Callable[[], str] = str) -> Iterator[None]:
    """The output folder, made if need be, for this job alone. The lock goes with the process.

    ``held`` says who holds it, for the message of the one that is refused.
    """
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        lock = FileLock(out / _LOCK, timeout=0)
        try:
            lock.acquire()
        except Timeout as error:
            raise UserError(
                code,
                f"another job is writing to this folder{held()}",
                "wait for it, or choose another folder",
                where=where,
            ) from error
    try:
        yield
    finally:
        lock.release()


def sweep(out: Path, folders: Sequence[str]) -> None:
    """Remove what a killed job left half written, in ``out`` and anywhere below its ``folders``."""
    sweep_temporaries(out)
    for name in folders:
        for folder, _, _ in os.walk(out / name):
            sweep_temporaries(Path(folder))
