"""The folders of a job: apart from each other, locked, and tidy."""

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from medmtl.errors import UserError
from medmtl.files import disk_errors, write_atomic
from medmtl.ingest.job import Job
from medmtl.ingest.ledger import Ledger
from medmtl.ingest.report import PAGE, REPORT, TABLE
from medmtl.io.deidentify.key import write_private
from medmtl.io.deidentify.pseudonyms import Pseudonyms
from medmtl.ledger import remove_outputs
from medmtl.outfolder import LEDGER, check_output, locked, sweep

MANIFEST, IDENTITY = "manifest.csv", ".study.json"
_HOLDER, _PRIVATE_IDENTITY = "holder.json", "study.json"


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
    check_output(out, code="E-ING-OUT", where="OUT")


@contextlib.contextmanager
def held(out: Path, private: Path) -> Iterator[None]:
    """Both folders for this job alone; who holds them is written down for whoever is refused."""
    holder = private / _HOLDER
    with disk_errors(private):
        (private / ".lock").touch(mode=0o600)
    with (
        locked(out, code="E-ING-LOCK", where="OUT", held=lambda: _holder(holder)),
        locked(private, code="E-ING-LOCK", where="the private folder", held=lambda: _holder(holder)),
    ):
        write_private(holder, json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": time.time()}))
        yield
        holder.unlink(missing_ok=True)


def _holder(holder: Path) -> str:
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
    source = pseudonyms.file(os.fsencode(job.source.resolve()))
    identity = {
        "key": pseudonyms.fingerprint(),
        "source": source,
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
    _own_private(job, source)
    if before != identity:
        clear(job.out)
    write_atomic(path, json.dumps(identity) + "\n")


def _own_private(job: Job, source: str) -> None:
    """Make the private folder this source's, or refuse: its tables lead back from a study of another one."""
    path = job.private_folder / _PRIVATE_IDENTITY
    before = source
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        before = json.loads(path.read_text(encoding="utf-8"))["source"]
    if before != source and not job.overwrite:
        raise UserError(
            "E-ING-OUT",
            "the private folder leads back from a study of another source",
            "choose another one with --private (--key shares its key), or start anew with --overwrite",
            where="the private folder",
        )
    write_private(path, json.dumps({"source": source}) + "\n")


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
    sweep(out, ("images", "thumbnails", "masks"))
