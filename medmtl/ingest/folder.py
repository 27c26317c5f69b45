"""The folders of a job: apart from each other, locked, and tidy."""

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from medmtl.errors import UserError
from medmtl.files import disk_errors, sweep_temporaries, write_atomic
from medmtl.ingest.job import Job
from medmtl.ingest.ledger import Ledger, remove_outputs
from medmtl.ingest.report import PAGE, REPORT, TABLE
from medmtl.io.deidentify.key import write_private
from medmtl.io.deidentify.pseudonyms import Pseudonyms

LEDGER, MANIFEST, IDENTITY = "cases.jsonl", "manifest.csv", ".study.json"
_LOCK, _HOLDER = ".lock", "holder.json"
_FOLDERS = ("images", "thumbnails", "masks")


def check_folders(job: Job) -> None:
    """Refuse a source that is no folder, folders in each other, and an output folder that holds something else."""
    source, out = job.source.resolve(), job.out.resolve()
    if not source.is_dir():
        raise UserError("E-ING-SOURCE", "no such folder", "give the folder that holds the images", where="SOURCE")
    if source.is_relative_to(out) or out.is_relative_to(source):
        raise UserError(
            "E-ING-OUT",
            "the output folder and the source lie one in the other",
            "choose an output folder beside the source",
            where="OUT",
        )
    if out.exists() and not out.is_dir():
        raise UserError("E-ING-OUT", "not a folder", "choose another path", where="OUT")
    if out.is_dir() and not (out / LEDGER).exists() and any(not path.name.startswith(".") for path in out.iterdir()):
        raise UserError(
            "E-ING-OUT",
            f"the folder holds other files and no {LEDGER}",
            "choose an empty or a new folder",
            where="OUT",
        )


@contextlib.contextmanager
def locked(out: Path, private: Path) -> Iterator[None]:
    """The output folder, made if need be, for this job alone. The lock goes with the process."""
    holder = private / _HOLDER
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        lock = FileLock(out / _LOCK, timeout=0)
        try:
            lock.acquire()
        except Timeout as error:
            raise UserError(
                "E-ING-LOCK",
                f"another job is writing to this folder{_held(holder)}",
                "wait for it, or choose another folder",
                where="OUT",
            ) from error
    try:
        write_private(holder, json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": time.time()}))
        yield
        holder.unlink(missing_ok=True)
    finally:
        lock.release()


def _held(holder: Path) -> str:
    """Who holds the lock, as far as is known."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        tree = json.loads(holder.read_text(encoding="utf-8"))
        minutes = (time.time() - float(tree["since"])) / 60
        return f" (process {int(tree['pid'])} on {tree['host']}, for {minutes:.0f} min)"
    return ""


def own(job: Job, pseudonyms: Pseudonyms) -> None:
    """Make the output folder this study's, or refuse: it is one of another source, another key or other naming.

    With ``overwrite`` the other study's files, those that its ledger names, are removed first.
    """
    identity = {
        "key": pseudonyms.fingerprint(),
        "source": pseudonyms.file(os.fsencode(job.source.resolve())),
        "keep_names": job.keep_names,
    }
    path = job.out / IDENTITY
    before = None
    with contextlib.suppress(OSError, ValueError):
        before = json.loads(path.read_text(encoding="utf-8"))
    if before != identity and (job.out / LEDGER).exists() and not job.overwrite:
        names = {"key": "another key", "source": "another source", "keep_names": "other naming"}
        other = [names[name] for name in identity if (before or {}).get(name) != identity[name]]
        raise UserError(
            "E-ING-OUT",
            f"the folder holds a study of {', '.join(other)}",
            "choose another folder, or start anew with --overwrite",
            where="OUT",
        )
    if before != identity:
        clear(job.out)
    write_atomic(path, json.dumps(identity) + "\n")


def clear(out: Path) -> None:
    """Remove what an earlier job wrote: the files that its ledger names, and the ledger last. Nothing else."""
    if not (out / LEDGER).exists():
        return
    with contextlib.suppress(UserError):  # a damaged ledger: its files stay, to be replaced by those of the same cases
        for entry in Ledger(out / LEDGER).entries.values():
            remove_outputs(out, entry.outputs)
    remove_outputs(out, (REPORT, TABLE, PAGE, MANIFEST, LEDGER))


def tidy(out: Path) -> None:
    """Remove what killed workers left half written."""
    sweep_temporaries(out)
    for kind in _FOLDERS:
        for folder, _, _ in os.walk(out / kind):
            sweep_temporaries(Path(folder))
