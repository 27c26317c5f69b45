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
import stat
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

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
from medmtl.errors import NOTHING, OK, PARTIAL, EnvironmentFailure, SafetyRefusal, TrainingInterrupted, UserError
from medmtl.files import disk_errors, inside, sha256, sweep_temporaries, write_atomic
from medmtl.inference.ledger import Cell, Entry, Ledger, LedgerDamaged, Status, read_ledger, remove_outputs
from medmtl.inference.writers.overlay import colour, write_mask, write_overlay
from medmtl.inference.writers.table import global_cells, write_errors, write_predictions
from medmtl.io.discover import Found, discover
from medmtl.io.raster import read_image
from medmtl.models.views import VIEWS, ViewSet
from medmtl.predictor import Predictor
from medmtl.process import device_named, signals
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
        least_of = {"batch_size": 1, "workers": 1, "max_failures": 0}
        for name, least in least_of.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError("E-PRE-JOB", f"{name} is {value}", f"give {least} or more", where="predict")
        if self.views is not None and self.views not in VIEWS:
            raise UserError("E-PRE-JOB", f"unknown views {self.views!r}", f"choose {', '.join(VIEWS)}", where="predict")


@dataclass(frozen=True)
class Summary:
    """How a job ended. ``exit_code``: 0 all images have a result, 3 some have none, 4 none has one (or no image)."""

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
    _check_channels(bundle.spec, job.bundle)
    views, device = job.views or bundle.spec.views, device_named(job.device)
    settings = digest({"medmtl": __version__, "views": views, "overlays": job.overlays})[:12]
    with _locked(job.out), signals("batch") as caught:
        if job.overwrite:
            _clear(job.out)
        ledger = Ledger(job.out / LEDGER, bundle=bundle.id, settings=settings)
        _tidy(job.out)
        listing = discover(job.source, exclude=(job.out,))
        work = _Work(job, bundle.spec, Predictor.of(bundle, device=device, views=views), ledger)
        with ThreadPoolExecutor(job.workers) as pool, _Progress(len(listing.images), console) as progress:
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


@dataclass(frozen=True)
class _Loaded:
    """An image ready for the network; one that is done already has neither ``image`` nor ``error``."""

    found: Found
    sha256: str = ""
    signature: tuple[int, ...] = ()
    image: Tensor | None = None  # [C, *S], preprocessed
    native: tuple[int, ...] = ()  # [*S] before preprocessing
    blank: bool = False  # every pixel has the same value
    error: UserError | None = None
    seconds: float = 0.0


@dataclass
class _Work:
    """The job while it runs."""

    job: Job
    spec: ModelSpec
    predictor: Predictor
    ledger: Ledger
    computed: set[str] = field(default_factory=set)  # images with a result of this run
    failures: int = 0  # in this run
    seconds: Counter[str] = field(default_factory=Counter)  # per stage: waiting for images, the network, writing
    _digests: dict[str, tuple[tuple[int, ...], str]] = field(default_factory=dict)

    @property
    def tasks(self) -> dict[str, AnyTask]:
        """The tasks that say something about an image; its domain is known, and an adversary's guess is no finding."""
        return {name: task for name, task in self.spec.tasks.items() if not isinstance(task, Domain)}

    def run(
        self, images: Sequence[Found], pool: ThreadPoolExecutor, progress: "_Progress", caught: Sequence[int]
    ) -> None:
        """Batch after batch, the next one being read meanwhile."""
        size = self.job.batch_size
        batches = [images[start : start + size] for start in range(0, len(images), size)]
        ahead: list[Future[_Loaded]] = []
        for number, batch in enumerate([*batches, []]):
            if caught:
                raise TrainingInterrupted(caught[0])
            with self._timed("read"):
                loaded = [future.result() for future in ahead]
            ahead = [pool.submit(self._read, image) for image in batch]
            failed, done = self._batch(loaded, pool)
            progress.advance(len(loaded), done, failed)
            self.failures += failed
            if self.job.max_failures is not None and self.failures > self.job.max_failures:
                self._skip(images[number * size :])
                return

    def _batch(self, loaded: Sequence[_Loaded], pool: ThreadPoolExecutor) -> tuple[int, int]:
        """Predict and record what is not done of one batch; returns how many failed and how many were computed."""
        entries = [self._failed(item, item.error) for item in loaded if item.error is not None]
        new = [item for item in loaded if item.image is not None]
        if new:
            done = [item.found for item in loaded if item.image is None and item.error is None]
            with self._timed("read"):
                company = [item for item in pool.map(self._read_again, done) if item.image is not None]
            with self._timed("forward") as began:
                decoded = self._forward(sorted([*new, *company], key=lambda item: item.found))
                share = (time.perf_counter() - began) / len(decoded)
            with self._timed("write"):
                entries += pool.map(lambda item: self._finish(item, decoded[item.found.id], share), new)
        with self._timed("write"):
            self.ledger.append(entries)
        self.computed |= {entry.id for entry in entries if entry.status == "ok"}
        return sum(entry.status == "failed" for entry in entries), len(entries)

    @contextlib.contextmanager
    def _timed(self, stage: str) -> Iterator[float]:
        began = time.perf_counter()
        yield began
        self.seconds.update({stage: time.perf_counter() - began})  # type: ignore[dict-item] # typed for whole numbers

    def _read_again(self, found: Found) -> _Loaded:
        return self._read(found, even_if_done=True)

    def _read(self, found: Found, *, even_if_done: bool = False) -> _Loaded:
        """Read and preprocess one image, unless its result is there. Runs in a thread; what is wrong is returned."""
        began = time.perf_counter()
        content = ""
        try:
            path = inside(self.job.source, found.path)
            signature = _signature(path)
            content = self._digest(path, signature)
            if not even_if_done and self.ledger.done(found.id, content):
                return _Loaded(found, content)
            pixels = read_image(path, channels=self.spec.preprocess.channels, page=found.page)
            image = self.spec.preprocess.apply(pixels)
            if not torch.isfinite(image).all():
                raise UserError("E-IMG-FINITE", "the preprocessed image holds NaN or infinity", "check its intensities")
            _same(path, signature)
        except (UserError, OSError, MemoryError) as error:
            seconds = time.perf_counter() - began
            return _Loaded(found, content, error=_explained(error), seconds=seconds)
        blank = bool(pixels.min() == pixels.max())
        seconds = time.perf_counter() - began
        return _Loaded(found, content, signature, image, pixels.shape[1:], blank, seconds=seconds)

    def _digest(self, path: Path, signature: tuple[int, ...]) -> str:
        """SHA-256 of a file, taken once for all its pages."""
        known = self._digests.get(str(path))
        if known is None or known[0] != signature:
            known = self._digests[str(path)] = (signature, sha256(path))
        return known[1]

    def _forward(self, items: Sequence[_Loaded]) -> dict[str, "dict[str, Tensor] | UserError"]:
        """Decoded outputs (or what went wrong) by image; images of one shape go through together."""
        by_shape: dict[tuple[int, ...], list[_Loaded]] = defaultdict(list)
        for item in items:
            assert item.image is not None
            by_shape[tuple(item.image.shape)].append(item)
        decoded: dict[str, dict[str, Tensor] | UserError] = {}
        for shape, alike in by_shape.items():
            together = max(1, _MAX_VALUES // math.prod(shape))
            for start in range(0, len(alike), together):
                part = alike[start : start + together]
                results = _decode(self.predictor, [item.image for item in part if item.image is not None])
                decoded.update({item.found.id: result for item, result in zip(part, results, strict=True)})
        return decoded

    def _finish(self, item: _Loaded, decoded: "dict[str, Tensor] | UserError", forward: float) -> Entry:
        """Write the files of one image and compose its line of the ledger. Runs in a thread."""
        began = time.perf_counter()
        try:
            if isinstance(decoded, UserError):
                raise decoded
            for name in self.tasks:
                _finite(name, decoded[name])
            cells: dict[str, Cell] = {}
            files: list[str] = []
            for name, task in self.tasks.items():
                if isinstance(task, Segmentation):
                    dense, written = self._dense(item, name, task, decoded[name])
                    cells, files = {**cells, **dense}, [*files, *written]
                else:
                    cells.update(global_cells(name, task, decoded[name]))
            outputs = {name: sha256(inside(self.job.out, name)) for name in files}
        except (UserError, OSError, MemoryError) as error:
            explained = _explained(error, self.job.out)
            with contextlib.suppress(OSError, SafetyRefusal):  # a name too long
                remove_outputs(self.job.out, [file for name in self.tasks for file in _files(item.found, name)])
            return self._failed(item, explained)
        seconds = item.seconds + forward + time.perf_counter() - began
        return self._entry(item, "ok", seconds, outputs=outputs, cells=cells, warnings=_warnings(item, self.spec))

    def _dense(
        self, item: _Loaded, name: str, task: Segmentation, probabilities: Tensor
    ) -> tuple[dict[str, Cell], list[str]]:
        """Cells and files of a dense task: probabilities back on the native grid, then the most probable class.

        The shares are of the part of the image that the network saw; the rest counts as background in the mask.
        """
        maps, inside_window = self.spec.preprocess.restore(probabilities, item.native)
        labels, seen = maps.argmax(0).numpy(), inside_window.numpy()
        mask, picture = _files(item.found, name)
        with disk_errors(self.job.out / mask):
            write_mask(inside(self.job.out, mask), labels)
        shares = {f"{name}.fraction.{label}": float((labels[seen] == k).mean()) for k, label in enumerate(task.classes)}
        del shares[f"{name}.fraction.{task.classes[0]}"]
        if not self.job.overlays:
            return {**shares, f"{name}.mask": mask}, [mask]
        path = inside(self.job.source, item.found.path)  # read again rather than held in memory for a whole batch
        pixels = read_image(path, channels=self.spec.preprocess.channels, page=item.found.page)
        _same(path, item.signature)
        with disk_errors(self.job.out / picture):
            write_overlay(inside(self.job.out, picture), pixels, labels, seen=seen)
        return {**shares, f"{name}.mask": mask}, [mask, picture]

    def _entry(self, item: _Loaded, status: Status, seconds: float, **more: Any) -> Entry:
        found, ledger = item.found, self.ledger
        return Entry(
            found.id,
            found.path,
            found.page,
            item.sha256,
            status,
            ledger.bundle,
            ledger.settings,
            seconds=round(seconds, 4),
            **more,
        )

    def _failed(self, item: _Loaded, error: UserError) -> Entry:
        return self._entry(item, "failed", item.seconds, code=error.code, message=error.what, remedy=error.remedy)

    def _skip(self, images: Iterable[Found]) -> None:
        reason = f"not tried, since more than {self.job.max_failures} images failed"
        remedy = "mend what errors.csv lists, or raise max_failures, then run the same command again"
        left = [image for image in images if not (known := self.ledger.entries.get(image.id)) or known.status != "ok"]
        self.ledger.append(
            self._entry(_Loaded(image), "skipped", 0.0, code="E-PRE-STOPPED", message=reason, remedy=remedy)
            for image in left
        )


def _files(found: Found, task: str) -> tuple[str, str]:
    """Mask and overlay of an image, below the output folder. Distinct: every image's name ends in its suffix."""
    end = f"{task}/{found.path}{f'.p{found.page}' if found.pages > 1 else ''}.png"
    return f"masks/{end}", f"overlays/{end}"


def _decode(predictor: Predictor, images: Sequence[Tensor]) -> "list[dict[str, Tensor] | UserError]":
    """One result per image. If a batch does not go through, its halves are tried, so that one image fails alone."""
    try:
        decoded = predictor.decode(torch.stack(list(images)))
    except torch.AcceleratorError as error:
        raise EnvironmentFailure(
            "E-DEV-FAILED",
            f"the device failed: {_first_line(error)}",
            "run again, or with device cpu",
            where=str(predictor.device),
        ) from error
    except (RuntimeError, ValueError, MemoryError) as error:
        if len(images) == 1:
            return [_refused(error, images[0])]
        half = len(images) // 2
        return _decode(predictor, images[:half]) + _decode(predictor, images[half:])
    return [{name: value[i] for name, value in decoded.items()} for i in range(len(images))]


def _refused(error: Exception, image: Tensor) -> UserError:
    size = " x ".join(str(n) for n in image.shape[1:])
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "not enough memory" in str(error):
        return UserError(
            "E-PRE-MEMORY", f"the memory does not suffice for {size} px", "cut the image into tiles, or use device cpu"
        )
    return UserError(
        "E-PRE-MODEL", f"the network cannot process {size} px ({_first_line(error)})", "crop or resize the image"
    )


def _finite(name: str, value: Tensor) -> None:
    if not torch.isfinite(value).all():
        raise UserError(
            "E-PRE-FINITE",
            f"the output of {name!r} is not a finite number",
            "look at the image; if it is like the others, the bundle is damaged",
        )


def _explained(error: Exception, out: Path | None = None) -> UserError:
    """What is wrong with one image, as an error with a remedy; raises what is wrong with the machine."""
    match error:
        case EnvironmentFailure():
            raise error
        case UserError():
            return error
        case MemoryError():
            return UserError("E-PRE-MEMORY", "the memory does not suffice for the image", "cut it into tiles")
        case OSError() if out is None:
            reason = f"the file cannot be read ({os.strerror(error.errno) if error.errno else type(error).__name__})"
            return UserError("E-IMG-FILE", reason, "restore it, or its permissions, and run again")
        case OSError() if error.errno in _NAME_ERRORS:
            return UserError(
                "E-PRE-NAME", f"no output file can have this name ({os.strerror(error.errno)})", "rename the image"
            )
    raise EnvironmentFailure(
        "E-DISK", f"cannot write ({error})", "see to the disk, then run again", where=str(out)
    ) from error


def _signature(path: Path) -> tuple[int, ...]:
    """What changes when a file is written to; refuses what is not a regular file (a FIFO would be waited for)."""
    info = path.stat()
    if not stat.S_ISREG(info.st_mode):
        what = "the folder cannot be listed" if stat.S_ISDIR(info.st_mode) else "not a regular file"
        raise UserError("E-IMG-FILE", what, "check that it is a file or folder that you may read")
    return info.st_size, info.st_mtime_ns, info.st_ino


def _same(path: Path, signature: tuple[int, ...]) -> None:
    if _signature(path) != signature:
        raise UserError("E-PRE-CHANGED", "the file changed while it was read", "wait until it is copied and run again")


def _warnings(item: _Loaded, spec: ModelSpec) -> tuple[str, ...]:
    found = []
    if item.blank:
        found.append("W-PRE-BLANK every pixel has the same value")
    share = _seen(spec.preprocess, item.native)
    dense = any(isinstance(task, Segmentation) for task in spec.tasks.values())
    if share < (1.0 if dense else 0.5):
        found.append(f"W-PRE-WINDOW the network saw the centre only, {100 * share:.0f} % of the image")
    return tuple(found)


def _seen(preprocess: Preprocess, native: Sequence[int]) -> float:
    """The share of an image that lies in the window."""
    grid = preprocess.resize or tuple(native)
    return math.prod(min(n, w) / n for n, w in zip(grid, preprocess.window or grid, strict=True))


def _check_folders(job: Job) -> None:
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


def _check_channels(spec: ModelSpec, bundle: Path) -> None:
    if spec.preprocess.channels not in (1, 3):
        raise UserError(
            "E-PRE-CHANNELS",
            f"the bundle takes {spec.preprocess.channels} channels, image files hold 1 or 3",
            "use a bundle that was trained on image files",
            where=str(bundle),
        )


@contextlib.contextmanager
def _locked(out: Path) -> Iterator[None]:
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


def _clear(out: Path) -> None:
    """Remove what an earlier job wrote: the files that its ledger names, and the ledger last. Nothing else."""
    if not (out / LEDGER).exists():
        return
    with contextlib.suppress(LedgerDamaged):  # its files stay, to be replaced by those of the same images
        for entry in read_ledger(out / LEDGER):
            remove_outputs(out, entry.outputs)
    remove_outputs(out, (SUMMARY, PREDICTIONS, ERRORS, LEDGER))


def _tidy(out: Path) -> None:
    """Remove what a killed job left half written, and the summary, which says that everything else is complete."""
    remove_outputs(out, (SUMMARY,))
    sweep_temporaries(out)
    for kind in ("masks", "overlays"):
        for folder, _, _ in os.walk(out / kind):
            sweep_temporaries(Path(folder))


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


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


class _Progress:
    """A bar with images per second and the time left; where there is no terminal, a line now and then."""

    def __init__(self, total: int, console: Console) -> None:
        self.total, self.console = total, console
        self.bars: Bars | None = None
        self.done = self.computed = self.failed = 0
        self.began = self.printed = time.monotonic()

    def __enter__(self) -> "_Progress":
        if self.console.is_terminal:
            self.bars = Bars(
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
                TimeRemainingColumn(),
                console=self.console,
            )
            self.bar = self.bars.add_task("images", total=self.total, note="")
            self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bars is not None:
            self.bars.stop()
        elif self.printed != self.began or kind is None:
            self._print()

    def advance(self, images: int, computed: int, failed: int) -> None:
        """``images`` more are dealt with; ``computed`` of them in this run, the others were done."""
        self.done, self.computed, self.failed = self.done + images, self.computed + computed, self.failed + failed
        if self.bars is not None:
            self.bars.update(self.bar, completed=self.done, note=self._note())
        elif time.monotonic() - self.printed > _REPORT_S:
            self._print()

    def _note(self) -> str:
        rate = self.computed / max(time.monotonic() - self.began, 1e-9)
        return f"{rate:.1f} images/s" + (f"  {self.failed} failed" if self.failed else "")

    def _print(self) -> None:
        self.printed = time.monotonic()
        spent = self.printed - self.began
        left = (self.total - self.done) * spent / max(self.done, 1)
        clock = f"{left:.0f} s left" if self.done < self.total else f"{spent:.1f} s"
        self.console.print(f"{self.done}/{self.total} images  {self._note()}  {clock}", highlight=False, markup=False)
