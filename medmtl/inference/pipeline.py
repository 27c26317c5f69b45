"""A folder of images and a bundle -> tables, masks and overlays. A damaged image is a row in the report, never a crash.

Images are read and preprocessed by threads while the network works on the batch before. A batch is made of consecutive
images of the sorted folder, split by preprocessed shape. Float32 sums depend, in the last digit, on the size of the
batch; therefore a job that is resumed composes the very batches of an uninterrupted one (if need be with images that
are done already, whose results are kept) and ends with the same bytes. With another batch size: equal to about 1e-6.

Nothing that trains, tracks or evaluates is imported here: a container beside a scanner does not have it.
"""

import contextlib
import errno
import json
import logging
import math
import os
import platform
import signal
import stat
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Literal

import numpy as np
import PIL
import torch
from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from torch import Tensor

from medmtl import __version__
from medmtl.bundle import ModelSpec, load_bundle
from medmtl.config import digest
from medmtl.data.preprocess import Preprocess
from medmtl.errors import NOTHING, OK, PARTIAL, EnvironmentFailure, TrainingInterrupted, UserError
from medmtl.files import disk_errors, inside, sha256, sweep_temporaries, write_atomic
from medmtl.inference.ledger import Cell, Entry, Ledger, read_ledger, remove_outputs
from medmtl.inference.writers.overlay import colour, write_mask, write_overlay
from medmtl.inference.writers.table import global_cells, write_errors, write_predictions
from medmtl.io.discover import Found, discover
from medmtl.io.raster import read_image
from medmtl.models.views import VIEWS, ViewSet
from medmtl.predictor import Predictor
from medmtl.tasks import AnyTask
from medmtl.tasks.domain import Domain
from medmtl.tasks.segmentation import Segmentation

LEDGER, PREDICTIONS, ERRORS, SUMMARY = "cases.jsonl", "predictions.csv", "errors.csv", "summary.json"
_LOCK = ".lock"
_MAX_VALUES = 2**26  # numbers in one input tensor (256 MiB); images too large for that go through in smaller batches
_NAME_ERRORS = (errno.ENAMETOOLONG, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.EINVAL, errno.EILSEQ)
_REPORT_S = 30.0  # how often a line is printed where there is no terminal

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """What to predict, with what, where to. Only ``views`` and ``overlays`` are settings that results depend on."""

    bundle: Path
    source: Path
    out: Path  # may lie inside ``source``: it is never read as input
    batch_size: int = 32
    device: str = "auto"  # auto, cpu, cuda, cuda:1
    views: ViewSet | None = None  # None: those of the bundle
    overlays: bool = True
    workers: int = 1  # threads that read, preprocess and write
    overwrite: bool = False  # drop the results of an earlier job in ``out``
    max_failures: int | None = None  # stop when more images than this have failed; the rest is skipped

    def __post_init__(self) -> None:
        for name, value, least in (("batch_size", self.batch_size, 1), ("workers", self.workers, 1),
                                   ("max_failures", self.max_failures or 0, 0)):  # fmt: skip
            if value < least:
                raise UserError("E-PRE-JOB", f"{name} is {value}", f"give {least} or more", where="predict")
        if self.views is not None and self.views not in VIEWS:
            raise UserError("E-PRE-JOB", f"unknown views {self.views!r}", f"choose {', '.join(VIEWS)}", where="predict")


@dataclass(frozen=True)
class Summary:
    """How a job ended. ``exit_code``: 0 all images, 3 some of them have no result, 4 none has one (or there is none)."""

    total: int
    ok: int
    failed: int
    skipped: int  # not tried, because of ``max_failures``
    resumed: int  # of ``ok``: taken from an earlier run
    ignored: int  # files that are no images
    ignored_kinds: Mapping[str, int]
    exit_code: int
    paths: Mapping[str, Path]  # ledger, predictions, errors, summary


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
    _check_folders(job)
    bundle = load_bundle(job.bundle)
    spec = bundle.spec
    if spec.preprocess.channels not in (1, 3):
        raise UserError("E-PRE-CHANNELS", f"the bundle takes {spec.preprocess.channels} channels, image files hold 1 or 3",
                        "use a bundle trained on such files", where=str(job.bundle))  # fmt: skip
    device = _device(job.device)
    settings = digest({"medmtl": __version__, "views": job.views or spec.views, "overlays": job.overlays})[:12]
    with _locked(job.out), _signals() as caught:
        if job.overwrite and (job.out / LEDGER).exists():
            _clear(job.out)
        ledger = Ledger(job.out / LEDGER, bundle=bundle.id, settings=settings)
        (job.out / SUMMARY).unlink(missing_ok=True)  # it says that the other files are complete
        for name in ("", "masks", "overlays"):
            _sweep(job.out / name)
        listing = discover(job.source, exclude=(job.out,))
        work = _Work(job, spec, Predictor.of(bundle, device=device, views=job.views), ledger)
        with ThreadPoolExecutor(job.workers) as pool, Progress(len(listing.images), console) as progress:
            try:
                work.run(listing.images, pool, progress, caught)
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
        summary = _summarise(job.out, [ledger.entries[image.id] for image in listing.images], work, listing.ignored)
        facts = {"bundle": bundle.id, "settings": settings, "device": str(device), "views": job.views or spec.views,
                 "overlays": job.overlays, "seconds": {**work.seconds, "total": round(time.monotonic() - began, 3)}}  # fmt: skip
        _write_summary(summary, facts, spec)
    return summary


@dataclass(frozen=True)
class _Loaded:
    """An image ready for the network, or why there is none."""

    found: Found
    sha256: str = ""
    signature: tuple[int, int, int] = (0, 0, 0)
    image: Tensor | None = None  # [C, *S], preprocessed; None if it failed or is done already
    native: tuple[int, ...] = ()  # [*S] before preprocessing
    blank: bool = False
    error: UserError | None = None
    seconds: float = 0.0


@dataclass
class _Work:
    """The job while it runs."""

    job: Job
    spec: ModelSpec
    predictor: Predictor
    ledger: Ledger
    computed: set[str] = field(default_factory=set)  # ids with a result of this run
    failures: int = 0
    seconds: Counter[str] = field(default_factory=Counter)  # per stage; reading and writing summed over threads
    _digests: dict[str, tuple[tuple[int, int, int], str]] = field(default_factory=dict)

    @property
    def tasks(self) -> Mapping[str, AnyTask]:
        return findings(self.spec)

    def run(
        self, images: Sequence[Found], pool: ThreadPoolExecutor, progress: "Progress", caught: Sequence[int]
    ) -> None:
        """Batch after batch, the next one being read meanwhile."""
        batches = [images[i : i + self.job.batch_size] for i in range(0, len(images), self.job.batch_size)]
        ahead = self._submit(batches[0], pool) if batches else []
        for number, batch in enumerate(batches):
            if caught:
                raise TrainingInterrupted(caught[0])
            loaded = [future.result() for future in ahead]
            ahead = self._submit(batches[number + 1], pool) if number + 1 < len(batches) else []
            failed = self._batch(loaded, pool)
            progress.advance(len(batch), failed)
            if self.job.max_failures is not None and self.failures > self.job.max_failures:
                return self._skip([image for later in batches[number + 1 :] for image in later])
        if caught:
            raise TrainingInterrupted(caught[0])

    def _submit(self, batch: Sequence[Found], pool: ThreadPoolExecutor) -> "list[Future[_Loaded]]":
        return [pool.submit(self._read, image) for image in batch]

    def _batch(self, loaded: Sequence[_Loaded], pool: ThreadPoolExecutor) -> int:
        """Predict and record what is not done of one batch; returns how many failed."""
        wanted = {item.found.id for item in loaded if item.image is not None}
        failed = [self._failed(item, item.error) for item in loaded if item.error is not None]
        if wanted:  # those that are done keep them company, so that the batches are those of an uninterrupted job
            loaded = list(
                pool.map(
                    lambda item: item if item.image is not None or item.error else self._read(item.found, again=True),
                    loaded,
                )
            )
        began = time.perf_counter()
        decoded = self._forward([item for item in loaded if item.image is not None]) if wanted else {}
        forward = time.perf_counter() - began
        share = forward / max(len(decoded), 1)
        finished = pool.map(lambda item: self._finish(item, decoded[item.found.id], share),
                            [item for item in loaded if item.found.id in wanted])  # fmt: skip
        entries = [*failed, *finished]
        self.ledger.append(entries)
        self.computed |= {entry.id for entry in entries if entry.status == "ok"}
        failures = sum(entry.status == "failed" for entry in entries)
        self.failures += failures
        self.seconds["read"] += sum(item.seconds for item in loaded)
        self.seconds["forward"] += forward
        self.seconds["write"] += sum(entry.seconds for entry in entries) - sum(
            item.seconds + share for item in loaded if item.found.id in wanted)  # fmt: skip
        return failures
