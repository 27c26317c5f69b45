"""The work of a job: read, preprocess, predict in batches, write, and record each image in the ledger."""

import contextlib
import errno
import math
import os
import stat
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medmtl.bundle import ModelSpec
from medmtl.data.preprocess import Preprocess
from medmtl.errors import EnvironmentFailure, SafetyRefusal, TrainingInterrupted, UserError
from medmtl.files import disk_errors, inside, sha256
from medmtl.inference.job import Job
from medmtl.inference.ledger import Cell, Entry, Ledger, Status
from medmtl.inference.writers.overlay import write_mask, write_overlay
from medmtl.inference.writers.table import global_cells
from medmtl.io.discover import Found
from medmtl.io.raster import read_image
from medmtl.ledger import remove_outputs
from medmtl.predictor import Predictor
from medmtl.progress import Progress
from medmtl.tasks import AnyTask
from medmtl.tasks.domain import Domain
from medmtl.tasks.segmentation import Segmentation

_MAX_VALUES = 2**26  # numbers in one input tensor (256 MiB); images too large for that go through in smaller batches
_NAME_ERRORS = (errno.ENAMETOOLONG, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.EINVAL, errno.EILSEQ)


@dataclass(frozen=True)
class Loaded:
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
class Work:
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

    def run(self, images: Sequence[Found], pool: ThreadPoolExecutor, progress: Progress, caught: Sequence[int]) -> None:
        """Batch after batch, the next one being read meanwhile."""
        size = self.job.batch_size
        batches = [images[start : start + size] for start in range(0, len(images), size)]
        ahead: list[Future[Loaded]] = []
        for number, batch in enumerate([*batches, []]):
            if caught:
                raise TrainingInterrupted(caught[0])
            with self._timed("read"):
                loaded = [future.result() for future in ahead]
            ahead = [pool.submit(self._read, image) for image in batch]
            failed, done = self._batch(loaded, pool)
            progress.advance(len(loaded), failed, computed=done)
            self.failures += failed
            if self.job.max_failures is not None and self.failures > self.job.max_failures:
                self._skip(images[number * size :])
                return

    def _batch(self, loaded: Sequence[Loaded], pool: ThreadPoolExecutor) -> tuple[int, int]:
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

    def _read_again(self, found: Found) -> Loaded:
        return self._read(found, even_if_done=True)

    def _read(self, found: Found, *, even_if_done: bool = False) -> Loaded:
        """Read and preprocess one image, unless its result is there. Runs in a thread; what is wrong is returned."""
        began = time.perf_counter()
        content = ""
        try:
            path = inside(self.job.source, found.path)
            signature = _signature(path)
            content = self._digest(path, signature)
            if not even_if_done and self.ledger.done(found.id, content):
                return Loaded(found, content)
            pixels = read_image(path, channels=self.spec.preprocess.channels, page=found.page)
            image = self.spec.preprocess.apply(pixels)
            if not torch.isfinite(image).all():
                raise UserError("E-IMG-FINITE", "the preprocessed image holds NaN or infinity", "check its intensities")
            _same(path, signature)
        except (UserError, OSError, MemoryError) as error:
            seconds = time.perf_counter() - began
            return Loaded(found, content, error=_explained(error), seconds=seconds)
        blank = bool(pixels.min() == pixels.max())
        seconds = time.perf_counter() - began
        return Loaded(found, content, signature, image, pixels.shape[1:], blank, seconds=seconds)

    def _digest(self, path: Path, signature: tuple[int, ...]) -> str:
        """SHA-256 of a file, taken once for all its pages."""
        known = self._digests.get(str(path))
        if known is None or known[0] != signature:
            known = self._digests[str(path)] = (signature, sha256(path))
        return known[1]

    def _forward(self, items: Sequence[Loaded]) -> dict[str, "dict[str, Tensor] | UserError"]:
        """Decoded outputs (or what went wrong) by image; images of one shape go through together."""
        by_shape: dict[tuple[int, ...], list[Loaded]] = defaultdict(list)
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

    def _finish(self, item: Loaded, decoded: "dict[str, Tensor] | UserError", forward: float) -> Entry:
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
        self, item: Loaded, name: str, task: Segmentation, probabilities: Tensor
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

    def _entry(self, item: Loaded, status: Status, seconds: float, **more: Any) -> Entry:
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

    def _failed(self, item: Loaded, error: UserError) -> Entry:
        return self._entry(item, "failed", item.seconds, code=error.code, message=error.what, remedy=error.remedy)

    def _skip(self, images: Iterable[Found]) -> None:
        reason = f"not tried, since more than {self.job.max_failures} images failed"
        remedy = "mend what errors.csv lists, or raise max_failures, then run the same command again"
        left = [image for image in images if not (known := self.ledger.entries.get(image.id)) or known.status != "ok"]
        self.ledger.append(
            self._entry(Loaded(image), "skipped", 0.0, code="E-PRE-STOPPED", message=reason, remedy=remedy)
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


def _warnings(item: Loaded, spec: ModelSpec) -> tuple[str, ...]:
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


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
