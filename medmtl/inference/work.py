"""The work of a job: read, preprocess, predict in batches, write, and record each input in the ledger.

While the network works on one batch, threads read the next and write the one before. A line is in the ledger only when
all its files are whole.
"""

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

from medmtl.errors import EnvironmentFailure, SafetyRefusal, TrainingInterrupted, UserError
from medmtl.files import sha256
from medmtl.fingerprint import Facts, Fingerprint, Verdict, compare
from medmtl.inference.batches import Batch, batches, cost_of
from medmtl.inference.forward import Decoded, Model
from medmtl.inference.job import Job
from medmtl.inference.ledger import Cell, Entry, Ledger, Status
from medmtl.inference.listing import Input
from medmtl.inference.outputs import leftovers, write_case
from medmtl.inference.reading import Loaded, Reader, explained
from medmtl.inference.remedies import remedy
from medmtl.inference.results import case_prediction, referral
from medmtl.ledger import remove_outputs
from medmtl.progress import Progress
from medmtl.tasks import AnyTask
from medmtl.tasks.domain import Domain


@dataclass
class _Writing:
    """A batch whose files are being written."""

    entries: list[Entry]
    futures: list["Future[Entry]"]
    inputs: int  # of the batch, those that were done already included
    cost: int


@dataclass
class Work:
    """The job while it runs."""

    job: Job
    model: Model
    ledger: Ledger
    budget: int  # bytes
    known: Fingerprint | None = None  # of the training images
    computed: set[str] = field(default_factory=set)  # inputs with a result of this run
    failures: int = 0  # in this run
    seconds: Counter[str] = field(default_factory=Counter)  # per stage: waiting for images, the network, writing
    stepped: Callable[[], None] = lambda: None  # told by any thread, whenever a part of an input's way is done

    def __post_init__(self) -> None:
        job = self.job
        self.reader = Reader(
            job.source,
            self.model.spec.preprocess,
            max_bytes=job.policy.max_bytes,
            fill_nan=job.fill_nan,
            facts=job.gate != "off" and self.known is not None,
        )

    @property
    def tasks(self) -> dict[str, AnyTask]:
        """The tasks that say something about an image; its domain is known, and an adversary's guess is no finding."""
        return {name: task for name, task in self.model.spec.tasks.items() if not isinstance(task, Domain)}

    def plan(self, inputs: Sequence[Input]) -> list[Batch]:
        """The batches of a job."""
        return batches(inputs, self.model.spec, size=self.job.batch_size, budget=self.budget)

    def run(
        self, planned: Sequence[Batch], pool: ThreadPoolExecutor, progress: Progress, caught: Sequence[int]
    ) -> None:
        """Batch after batch; what is computed is recorded even where the job ends early."""
        ahead: list[Future[Loaded]] = []
        writing: _Writing | None = None
        try:
            for number, batch in enumerate(planned):
                if caught:
                    raise TrainingInterrupted(caught[0])
                if self._stopped():
                    self._skip(item for later in planned[number:] for item in later.inputs)
                    return
                ahead = ahead or self._submit(batch, pool)
                with self._timed("read"):
                    loaded = [future.result() for future in ahead]
                following = planned[number + 1] if number + 1 < len(planned) else None
                held = batch.cost + (writing.cost if writing else 0)
                early = following is not None and following.cost + held <= self.budget
                ahead = self._submit(following, pool) if following is not None and early else []
                before, writing = writing, self._predict(loaded, pool, batch.cost)
                self._record(before, progress)
                if following is not None and not early:
                    before, writing = writing, None
                    self._record(before, progress)
        finally:
            for future in ahead:
                future.cancel()
            self._record(writing, progress)

    def _submit(self, batch: Batch, pool: ThreadPoolExecutor) -> "list[Future[Loaded]]":
        return [pool.submit(self._read, item) for item in batch.inputs]

    def _stopped(self) -> bool:
        return self.job.max_failures is not None and self.failures > self.job.max_failures

    def _predict(self, loaded: Sequence[Loaded], pool: ThreadPoolExecutor, cost: int) -> _Writing:
        """Predict what is not done of one batch, and begin to write it."""
        entries = [self.failed(item, item.error) for item in loaded if item.error is not None]
        new = [item for item in loaded if item.image is not None]
        futures: list[Future[Entry]] = []
        if new:
            done = [item.item for item in loaded if item.image is None and item.error is None]
            with self._timed("read"):
                company = [item for item in pool.map(self._read_again, done) if item.image is not None]
            with self._timed("forward") as began:
                together = sorted([*new, *company], key=lambda item: item.item.id)
                images = {item.item.id: item.image for item in together if item.image is not None}
                decoded = self.model.decode(images)
                share = (time.perf_counter() - began) / len(images)
            futures = [pool.submit(self._finish, item, decoded[item.item.id], share) for item in new]
        self.failures += len(entries)
        return _Writing(entries, futures, len(loaded), cost)

    def _record(self, writing: _Writing | None, progress: Progress) -> None:
        """Wait until a batch is written, and add its lines to the ledger."""
        if writing is None:
            return
        failure: EnvironmentFailure | None = None
        entries, before = list(writing.entries), len(writing.entries)
        with self._timed("write"):
            for future in writing.futures:
                try:
                    entries.append(future.result())
                except EnvironmentFailure as error:  # the others may have been written before the disk was full
                    failure = error
            self.ledger.append(entries)
        self.stepped()
        failed = sum(entry.status == "failed" for entry in entries)
        self.failures += failed - before
        self.computed |= {entry.id for entry in entries if entry.status == "ok"}
        progress.advance(writing.inputs, failed, computed=len(entries))
        if failure is not None:
            raise failure

    @contextlib.contextmanager
    def _timed(self, stage: str) -> Iterator[float]:
        began = time.perf_counter()
        yield began
        self.seconds.update({stage: time.perf_counter() - began})  # type: ignore[dict-item] # typed for whole numbers

    def _read_again(self, item: Input) -> Loaded:
        return self._read(item, even_if_done=True)

    def _read(self, item: Input, *, even_if_done: bool = False) -> Loaded:
        """Read and preprocess one input, unless its result is there. Runs in a thread; what is wrong is returned."""
        began = time.perf_counter()
        content = ""
        try:
            if item.refused is not None:
                raise item.refused
            if (cost := cost_of(item, self.model.spec)) > self.budget:
                what = f"the image and its results take {_size(cost)}, {_size(self.budget)} may be used"
                raise UserError("E-PRE-MEMORY", what, "raise --max-ram, or cut the image")
            files = self.reader.files(item)
            content = self.reader.digest(files)
            self.stepped()
            if not even_if_done and self.ledger.done(item.id, content):
                return Loaded(item, content)
            return self.reader.read(item, files, content)
        except (UserError, OSError, MemoryError) as error:
            seconds = time.perf_counter() - began
            return Loaded(item, content, error=explained(error), seconds=seconds)
        finally:
            self.stepped()

    def _finish(self, loaded: Loaded, decoded: Decoded | UserError, forward: float) -> Entry:
        """Write the files of one input and compose its line of the ledger. Runs in a thread."""
        began = time.perf_counter()
        out, item = self.job.out, loaded.item
        try:
            if isinstance(decoded, UserError):
                raise decoded
            verdict = self._verdict(loaded.facts, decoded.features)
            case = case_prediction(
                loaded,
                decoded,
                tasks=self.tasks,
                preprocess=self.model.spec.preprocess,
                root=self.job.source,
                bundle=self.ledger.bundle,
                verdict=verdict,
            )
            if verdict.level == "refuse" and self.job.gate == "refuse":
                raise UserError(
                    "E-PRE-GATE",
                    "; ".join(f"{name}: {what}" for name, what in verdict.fields.items()),
                    "the bundle was not made for such images; --gate warn gives a result none the less",
                )
            files = write_case(case, out, self.job.output, overlays=self.job.overlays)
            outputs = {name: sha256(path) for name, path in files.paths.items()}
        except (UserError, OSError, MemoryError) as error:
            told = explained(error, out)
            with contextlib.suppress(OSError, SafetyRefusal):  # a name too long
                remove_outputs(out, leftovers(out, item.name, self.tasks))
            return self.failed(loaded, told)
        finally:
            self.stepped()
        cells = {
            **case.cells,
            **{f"{task}.mask": name for task, name in files.masks.items()},
            **self._gate_cells(verdict),
        }
        seconds = loaded.seconds + forward + time.perf_counter() - began
        return self._entry(
            loaded, "ok", seconds, outputs=outputs, cells=cells, warnings=(*case.warnings, *files.warnings)
        )

    def _verdict(self, facts: Facts | None, features: tuple[float, ...] | None) -> Verdict:
        if facts is None or self.known is None:
            return Verdict("unknown")
        return compare(self.known, replace(facts, features=features))

    def _gate_cells(self, verdict: Verdict) -> Mapping[str, Cell]:
        level = "off" if self.job.gate == "off" else verdict.level
        words = "; ".join(f"{name}: {what}" for name, what in verdict.fields.items())
        reason = referral(verdict)
        return {
            "gate": level,
            "gate.reason": words,
            "refer_to_reader": "true" if reason else "false",
            "refer.reason": reason,
        }

    def _entry(self, loaded: Loaded, status: Status, seconds: float, **more: Any) -> Entry:
        item, ledger = loaded.item, self.ledger
        return Entry(
            item.id,
            item.path,
            item.page,
            loaded.sha256,
            status,
            ledger.bundle,
            ledger.settings,
            seconds=round(seconds, 4),
            **more,
        )

    def failed(self, loaded: Loaded, error: UserError) -> Entry:
        """The line of an input that has no result."""
        return self._entry(loaded, "failed", loaded.seconds, code=error.code, message=error.what, remedy=remedy(error))

    def _skip(self, inputs: Iterable[Input]) -> None:
        reason = f"not tried, since more than {self.job.max_failures} images failed"
        then = "mend what errors.csv lists, or raise max_failures, then run the same command again"
        left = [item for item in inputs if not (known := self.ledger.entries.get(item.id)) or known.status != "ok"]
        self.ledger.append(
            self._entry(Loaded(item), "skipped", 0.0, code="E-PRE-STOPPED", message=reason, remedy=then)
            for item in left
        )


def _size(count: int) -> str:
    """Bytes in the larger unit that gives a whole one, with a decimal: 1.5 GiB, 0.9 MiB."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
