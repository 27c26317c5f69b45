"""The output folder of a job: what may be in it, and what is removed from it."""

import contextlib
from pathlib import Path

from medmtl.errors import UserError
from medmtl.inference.job import Job
from medmtl.inference.ledger import read_ledger
from medmtl.inference.outputs import CASES, MASKS, OVERLAYS
from medmtl.inference.shards import ledgers
from medmtl.ledger import LedgerDamaged, remove_outputs
from medmtl.outfolder import LEDGER, check_output, sweep

PREDICTIONS, ERRORS, SUMMARY, MANIFEST = "predictions.csv", "errors.csv", "summary.md", "manifest.json"
INDEX = "index.html"  # over all reports, where they are written
SOURCES = "sources.private.csv"  # which files each id stands for: their names may name a patient


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
    check_output(out, code="E-PRE-OUT", where=str(job.out))


def clear(out: Path) -> None:
    """Remove what an earlier job wrote: the files that its ledgers name, and the ledger last. Nothing else."""
    if not (out / LEDGER).exists():
        return
    with contextlib.suppress(LedgerDamaged):  # its files stay, to be replaced by those of the same images
        for path in (out / LEDGER, *ledgers(out)):
            for entry in read_ledger(path):
                remove_outputs(out, entry.outputs)
    remove_outputs(out, [path.name for path in ledgers(out)])
    remove_outputs(out, (MANIFEST, INDEX, SUMMARY, PREDICTIONS, ERRORS, SOURCES, LEDGER))


def tidy(out: Path) -> None:
    """Remove what a killed job left half written, and the manifest, which says that everything else is complete."""
    remove_outputs(out, (MANIFEST,))
    sweep(out, (CASES, MASKS, OVERLAYS))
