"""The work of a job: read, preprocess, predict in batches, write, and record each input in the ledger.

While the network works on one batch, threads read the next and write the one before. A line is in the ledger only when
all its files are whole.
"""

import contextlib
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from medmtl.errors import EnvironmentFailure, SafetyRefusal, TrainingInterrupted, UserError
from medmtl.files import sha256
from medmtl.fingerprint import Fingerprint, Verdict, compare
from medmtl.inference.batches import Batch, batches, cost_of
from medmtl.inference.forward import Decoded, Model
from medmtl.inference.job import Job
from medmtl.inference.ledger import Cell, Entry, Ledger, Status
from medmtl.inference.listing import Input
from medmtl.inference.outputs import leftovers, write_case
from medmtl.inference.readers import Readers, worthwhile
from medmtl.inference.reading import Loaded, Reader, explained
from medmtl.inference.remedies import remedy
from medmtl.inference.results import case_prediction, referral
from medmtl.ledger import remove_outputs
from medmtl.progress import Progress
from medmtl.tasks import AnyTask
from medmtl.tasks.domain import Domain

_PARTS = 2  # of a batch that each thread finishes: one alone would be waited for at the end
_Written = tuple[list[Entry], EnvironmentFailure | None]  # lines of a part of a batch, and what ended its writing


@dataclass
class _Writing:
    """A batch whose files are being written."""

    entries: list[Entry]
    futures: list["Future[_Written]"]
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
    readers: Readers | None = None  # processes that read small pictures
    _adding: "Future[None] | None" = None

    def __post_init__(self) -> None:
        job = self.job
        self.reader = Reader(
            job.source,
            self.model.spec.preprocess,
            max_bytes=job.policy.max_bytes,
            fill_nan=job.fill_nan,
            known=None if job.gate == "off" else self.known,
        )

    @cached_property
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
        ahead: list[Future[list[Loaded]]] = []
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
                    loaded = [one for future in ahead for one in future.result()]
                following = planned[number + 1] if number + 1 < len(planned) else None
                held = batch.cost + (writing.cost if writing else 0)
                early = following is not None and following.cost + held <= self.budget
                ahead = self._submit(following, pool) if following is not None and early else []
                before, writing = writing, self._predict(loaded, pool, batch.cost)
                self._record(before, pool, progress)
                if following is not None and not early:
                    before, writing = writing, None
                    self._record(before, pool, progress)
        finally:
            for future in ahead:
                future.cancel()
            self._record(writing, pool, progress)
            self._settle()

    def _submit(self, batch: Batch, pool: ThreadPoolExecutor) -> "list[Future[list[Loaded]]]":
        """One input at a time for a thread; for a process, which has to be asked and to answer, its share at once."""
        size = 1 if self.readers is None else math.ceil(len(batch.inputs) / self.job.workers)
        starts = range(0, len(batch.inputs), size)
        return [pool.submit(self._read_part, batch.inputs[start : start + size]) for start in starts]

    def _stopped(self) -> bool:
        return self.job.max_failures is not None and self.failures > self.job.max_failures

    def _predict(self, loaded: Sequence[Loaded], pool: ThreadPoolExecutor, cost: int) -> _Writing:
        """Predict what is not done of one batch, and begin to write it."""
        entries = [self.failed(item, item.error) for item in loaded if item.error is not None]
        new = [item for item in loaded if item.image is not None]
        futures: list[Future[_Written]] = []
        if new:
            done = [item.item for item in loaded if item.image is None and item.error is None]
            with self._timed("read"):
                company = [item for item in pool.map(self._read_again, done) if item.image is not None]
            with self._timed("forward") as began:
                together = sorted([*new, *company], key=lambda item: item.item.id)
                images = {item.item.id: item.image for item in together if item.image is not None}
                decoded = self.model.decode(images)
                share = (time.perf_counter() - began) / len(images)
            size = math.ceil(len(new) / (_PARTS * self.job.workers))
            parts = [new[start : start + size] for start in range(0, len(new), size)]
            futures = [pool.submit(self._finish_part, part, decoded, share) for part in parts]
        self.failures += len(entries)
        return _Writing(entries, futures, len(loaded), cost)

    def _record(self, writing: _Writing | None, pool: ThreadPoolExecutor, progress: Progress) -> None:
        """Wait until a batch is written, and have its lines added to the ledger behind those of the batch before."""
        if writing is None:
            return
        failure: EnvironmentFailure | None = None
        entries, before = list(writing.entries), len(writing.entries)
        with self._timed("write"):
            for future in writing.futures:
                written, ended = future.result()
                entries += written  # some may have been written before the disk was full
                failure = ended or failure
            self._settle()
            self._adding = pool.submit(self.ledger.append, entries)
        self.stepped()
        failed = sum(entry.status == "failed" for entry in entries)
        self.failures += failed - before
        self.computed |= {entry.id for entry in entries if entry.status == "ok"}
        progress.advance(writing.inputs, failed, computed=len(entries))
        if failure is not None:
            self._settle()
            raise failure

    def _settle(self) -> None:
        """Wait for the lines that are being added to the ledger: syncing them takes as long as a picture or two."""
        adding, self._adding = self._adding, None
        if adding is not None:
            adding.result()

    @contextlib.contextmanager
    def _timed(self, stage: str) -> Iterator[float]:
        began = time.perf_counter()
        yield began
        self.seconds.update({stage: time.perf_counter() - began})  # type: ignore[dict-item] # typed for whole numbers

    def _read_part(self, inputs: Sequence[Input]) -> list[Loaded]:
        """A part of a batch, in order: what no process reads is read by this thread."""
        found: dict[str, Loaded] = {}
        if self.readers is not None:
            apart = [item for item in inputs if worthwhile(item) and self._new(item)]
            found = {one.item.id: one for one in (self.readers.read(apart, self.stepped) if apart else ())}
        return [found.get(item.id) or self._read(item) for item in inputs]

    def _new(self, item: Input) -> bool:
        """Whether the ledger has no result of an input, and the memory is enough for it."""
        known = self.ledger.entries.get(item.id)
        return (known is None or known.status != "ok") and cost_of(item, self.model.spec) <= self.budget

    def _read_again(self, item: Input) -> Loaded:
        return self._read(item, even_if_done=True)

    def _read(self, item: Input, *, even_if_done: bool = False) -> Loaded:
        """Read and preprocess one input, unless its result is there. Runs in a thread; what is wrong is returned."""

        def done(content: str) -> bool:
            self.stepped()
            return not even_if_done and self.ledger.done(item.id, content)

        try:
            if item.refused is not None:
                return Loaded(item, error=item.refused)
            if (cost := cost_of(item, self.model.spec)) > self.budget:
                what = f"the image and its results take {_size(cost)}, {_size(self.budget)} may be used"
                return Loaded(item, error=UserError("E-PRE-MEMORY", what, "raise --max-ram, or cut the image"))
            return self.reader.loaded(item, done)
        finally:
            self.stepped()

    def _finish_part(
        self, part: Sequence[Loaded], decoded: Mapping[str, Decoded | UserError], forward: float
    ) -> _Written:
        """Finish some of a batch, one after the other, until the machine fails. Runs in a thread."""
        entries: list[Entry] = []
        for item in part:
            try:
                entries.append(self._finish(item, decoded[item.item.id], forward))
            except EnvironmentFailure as error:
                return entries, error
        return entries, None

    def _finish(self, loaded: Loaded, decoded: Decoded | UserError, forward: float) -> Entry:
        """Write the files of one input and compose its line of the ledger."""
        began = time.perf_counter()
        out, item = self.job.out, loaded.item
        try:
            if isinstance(decoded, UserError):
                raise decoded
            verdict = self._verdict(loaded, decoded)
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

    def _verdict(self, loaded: Loaded, decoded: Decoded) -> Verdict:
        if loaded.facts is not None and self.known is not None:
            return compare(self.known, replace(loaded.facts, features=decoded.features))
        return loaded.verdict or Verdict("unknown")

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
        self._settle()
        then = "mend what errors.csv lists, or raise max_failures, then run the same command again"
        left = [item for item in inputs if not (known := self.ledger.entries.get(item.id)) or known.status != "ok"]
        self.ledger.append(
            self._entry(Loaded(item), "skipped", 0.0, code="E-PRE-STOPPED", message=reason, remedy=then)
            for item in left
        )


def _size(count: int) -> str:
    """Bytes in the larger unit that gives a whole one, with a decimal: 1.5 GiB, 0.9 MiB."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
