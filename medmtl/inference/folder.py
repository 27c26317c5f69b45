"""The output folder of a job: its own, locked, and tidy."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from medmtl.errors import UserError
from medmtl.files import disk_errors, sweep_temporaries
from medmtl.inference.job import Job
from medmtl.inference.ledger import LedgerDamaged, read_ledger, remove_outputs

LEDGER, PREDICTIONS, ERRORS, SUMMARY = "cases.jsonl", "predictions.csv", "errors.csv", "summary.json"
_LOCK = ".lock"


def check_folders(job: Job) -> None:
    source, out = job.source.resolve(), job.out.resolve()
    if not source.is_dir():
        raise UserError(
            "E-PRE-SOURCE", "no such folder", "give the folder that holds the images", where=str(job.source)
        )
    if source.is_relative_to(out):
        raise UserError(
            "E-PRE-OUT", "the output folder is or holds the source", "choose another folder", where=str(job.out)
        )
    if out.exists() and not out.is_dir():
        raise UserError("E-PRE-OUT", "not a folder", "choose another path", where=str(job.out))
    if out.is_dir() and not (out / LEDGER).exists() and any(not path.name.startswith(".") for path in out.iterdir()):
        raise UserError(
            "E-PRE-OUT",
            f"the folder holds other files and no {LEDGER}",
            "choose an empty or a new folder",
            where=str(job.out),
        )


@contextlib.contextmanager
def locked(out: Path) -> Iterator[None]:
    """The output folder, made if need be, for this job alone. The lock goes with the process."""
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        lock = FileLock(out / _LOCK, timeout=0)
        try:
            lock.acquire()
        except Timeout as error:
            raise UserError(
                "E-PRE-LOCK",
                "another job is writing to this folder",
                "wait for it, or choose another folder",
                where=str(out),
            ) from error
    try:
        yield
    finally:
        lock.release()


def clear(out: Path) -> None:
    """Remove what an earlier job wrote: the files that its ledger names, and the ledger last. Nothing else."""
    if not (out / LEDGER).exists():
        return
    with contextlib.suppress(LedgerDamaged):  # its files stay, to be replaced by those of the same images
        for entry in read_ledger(out / LEDGER):
            remove_outputs(out, entry.outputs)
    remove_outputs(out, (SUMMARY, PREDICTIONS, ERRORS, LEDGER))


def tidy(out: Path) -> None:
    """Remove what a killed job left half written, and the summary, which says that everything else is complete."""
    remove_outputs(out, (SUMMARY,))
    sweep_temporaries(out)
    for kind in ("masks", "overlays"):
        for folder, _, _ in os.walk(out / kind):
            sweep_temporaries(Path(folder))
