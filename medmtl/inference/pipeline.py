"""A folder of images and a bundle -> tables, masks and overlays. A damaged image is a row in the report, never a crash.

Images are read and preprocessed by threads while the network works on the batch before. A batch is made of consecutive
images of the sorted folder, split by preprocessed shape. Float32 sums depend, in the last digit, on the size of the
batch; therefore a job that is resumed composes the very batches of an uninterrupted one (if need be with images that
are done already, whose results are kept) and ends with the same bytes. With another batch size: equal to about 1e-6.

Nothing that trains, tracks or evaluates is imported here: a container beside a scanner does not have it.
"""

import json
import platform
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from rich.console import Console

from medmtl import __version__
from medmtl.bundle import ModelSpec, load_bundle
from medmtl.config import digest
from medmtl.errors import NOTHING, OK, PARTIAL, UserError
from medmtl.files import write_atomic
from medmtl.inference.folder import ERRORS, PREDICTIONS, SUMMARY, check_folders, clear, tidy
from medmtl.inference.job import Job, Summary
from medmtl.inference.ledger import Entry, Ledger
from medmtl.inference.work import Work
from medmtl.inference.writers.overlay import colour
from medmtl.inference.writers.table import write_errors, write_predictions
from medmtl.io.discover import discover
from medmtl.outfolder import LEDGER, locked
from medmtl.predictor import Predictor
from medmtl.process import device_named
from medmtl.progress import Progress
from medmtl.signals import signals
from medmtl.tasks import AnyTask
from medmtl.tasks.segmentation import Segmentation

__all__ = ["Job", "Summary", "predict"]


def predict(job: Job, *, console: Console | None = None) -> Summary:
    """Predict every image below ``job.source``, or those that an earlier run of the same job left undone.

    Writes ``predictions.csv``, ``errors.csv``, ``cases.jsonl``, ``masks/<task>/<image>.png``,
    ``overlays/<task>/<image>.png`` and, last, ``summary.json``. Failed images are tried again by the next run. The
    tables tell of the images that are in the source now; files of images that left it stay.

    Raises TrainingInterrupted after SIGINT or SIGTERM (the batch at hand is finished first), ``E-PRE-OUT`` when the
    output folder belongs to something else, ``E-PRE-LOCK`` when another job is writing there, and EnvironmentFailure
    when the disk or the device fails.
    """
    began = time.monotonic()
    console = console or Console(stderr=True)
    check_folders(job)
    bundle = load_bundle(job.bundle)
    _check_channels(bundle.spec, job.bundle)
    views, device = job.views or bundle.spec.views, device_named(job.device)
    settings = digest({"medmtl": __version__, "views": views, "overlays": job.overlays})[:12]
    with locked(job.out, code="E-PRE-LOCK", where=str(job.out)), signals("batch") as caught:
        if job.overwrite:
            clear(job.out)
        ledger = Ledger(job.out / LEDGER, bundle=bundle.id, settings=settings)
        tidy(job.out)
        listing = discover(job.source, exclude=(job.out,))
        work = Work(job, bundle.spec, Predictor.of(bundle, device=device, views=views), ledger)
        with ThreadPoolExecutor(job.workers) as pool, Progress(console) as progress:
            progress.begin("images", len(listing.images))
            try:
                work.run(listing.images, pool, progress, caught)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        entries = [ledger.entries[image.id] for image in listing.images]
        write_predictions(job.out / PREDICTIONS, entries, work.tasks)
        write_errors(job.out / ERRORS, entries)
        summary = _summary(job.out, entries, work.computed, listing.ignored)
        seconds = {**work.seconds, "total": time.monotonic() - began}
        facts = {
            "bundle": bundle.id,
            "settings": settings,
            "views": views,
            "overlays": job.overlays,
            "device": str(device),
            "batch_size": job.batch_size,
        }
        _write_summary(summary, facts, seconds, work.tasks)
    return summary


def _check_channels(spec: ModelSpec, bundle: Path) -> None:
    if spec.preprocess.volume is not None:
        raise UserError(
            "E-PRE-VOLUME",
            "the bundle was trained on volumes, a folder of pictures is what can be predicted so far",
            "evaluate the study instead; its cases.csv holds the predictions",
            where=str(bundle),
        )
    if spec.preprocess.channels not in (1, 3):
        raise UserError(
            "E-PRE-CHANNELS",
            f"the bundle takes {spec.preprocess.channels} channels, image files hold 1 or 3",
            "use a bundle that was trained on image files",
            where=str(bundle),
        )


def _summary(out: Path, entries: Sequence[Entry], computed: set[str], ignored: Mapping[str, int]) -> Summary:
    count = Counter(entry.status for entry in entries)
    code = NOTHING if not count["ok"] else PARTIAL if count["ok"] < len(entries) else OK
    paths = {"ledger": LEDGER, "predictions": PREDICTIONS, "errors": ERRORS, "summary": SUMMARY}
    return Summary(
        len(entries),
        count["ok"],
        count["failed"],
        count["skipped"],
        count["ok"] - len(computed),
        sum(ignored.values()),
        ignored,
        code,
        {name: out / file for name, file in paths.items()},
    )


def _write_summary(
    summary: Summary, facts: Mapping[str, Any], seconds: Mapping[str, float], tasks: Mapping[str, AnyTask]
) -> None:
    counts = {name: getattr(summary, name) for name in ("total", "ok", "failed", "skipped", "resumed")}
    colours = {
        name: {label: "#{:02x}{:02x}{:02x}".format(*colour(k)) for k, label in enumerate(task.classes) if k}
        for name, task in tasks.items()
        if isinstance(task, Segmentation)
    }
    versions = {
        "medmtl": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "pillow": PIL.__version__,
    }
    tree = {
        **facts,
        "counts": counts,
        "ignored": dict(summary.ignored_kinds),
        "exit_code": summary.exit_code,
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "colours": colours,
        "versions": versions,
        "use": "research use only, not a medical device",
    }
    write_atomic(summary.paths["summary"], json.dumps(tree, indent=2) + "\n")
