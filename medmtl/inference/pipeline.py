"""A folder of scans and a bundle -> tables, masks and reports. A damaged scan is a row in the report, never a crash.

The folder may hold DICOM series, NIfTI files and pictures together; they are found, sniffed and planned by the code
that ingests. A batch is made of consecutive inputs, sorted by id. Float32 sums depend, in the last digit, on the size
of the batch; therefore a job that is resumed composes the very batches of an uninterrupted one (if need be with inputs
that are done already, whose results are kept) and ends with the same bytes. With another batch size: equal to 1e-6.

Nothing that trains, tracks or evaluates is imported here: a container beside a scanner does not have it.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace

from rich.console import Console

from medmtl import __version__
from medmtl.bundle import Bundle, load_bundle
from medmtl.config import digest, plain
from medmtl.errors import UserError
from medmtl.fingerprint import Fingerprint, read_fingerprint
from medmtl.inference import shards
from medmtl.inference.account import Account, share_of, unsealed, write_account
from medmtl.inference.batches import Batch, default_budget
from medmtl.inference.folder import check_folders, clear, tidy
from medmtl.inference.forward import Model
from medmtl.inference.inputs import Finder
from medmtl.inference.job import Job, Summary
from medmtl.inference.ledger import Ledger
from medmtl.inference.listing import Listing
from medmtl.inference.outputs import check_coding
from medmtl.inference.readers import LEAST, reading_apart, worthwhile
from medmtl.inference.work import Work
from medmtl.ingest.walk import Walked
from medmtl.io.dicom.quiet import quiet
from medmtl.outfolder import LEDGER, locked
from medmtl.process import device_named, hold_memory
from medmtl.progress import Progress
from medmtl.signals import signals

__all__ = ["Job", "Session", "Summary", "look_ahead", "opened", "predict"]


@dataclass
class Session:
    """A job whose bundle is loaded and whose output folder is locked."""

    job: Job
    work: Work
    finder: Finder
    settings: str
    caught: Sequence[int]
    console: Console
    began: float

    def run(self) -> Summary:
        """Predict what is not done, and write the tables of everything."""
        listing = self.predict()
        shard = self.job.shard
        if listing.told and not shard.rank:
            self.say(listing.told)
        if shard.rank:
            shards.ended(self.job.out, shard)
            return share_of(self._account(listing))
        if shard.world > 1:
            shards.await_others(self.job.out, shard.world, self.caught)
            self.work.computed |= shards.merge(self.work.ledger)
            shards.forget(self.job.out)
            known = self.work.ledger.entries
            left = [b for b in self.work.plan(listing.inputs) if any(item.id not in known for item in b.inputs)]
            if left:  # the folder changed between the looks of two processes
                self._run(left)
        return self.report(listing)

    def predict(self) -> Listing:
        """Predict what is not done, of the share of this process."""
        listing = self.find()
        shard = self.job.shard
        self._run(self.work.plan(listing.inputs)[shard.rank :: shard.world])
        return listing

    def _run(self, planned: Sequence[Batch]) -> None:
        with self._readers(planned), self._threads() as pool, Progress(self.console) as progress:
            progress.begin("images", sum(len(batch.inputs) for batch in planned))
            try:
                self.work.run(planned, pool, progress, self.caught)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    @contextmanager
    def _readers(self, planned: Sequence[Batch]) -> Iterator[None]:
        """While the block runs, processes that read, where there are enough pictures for them."""
        if sum(worthwhile(item) for batch in planned for item in batch.inputs) < LEAST:
            yield
            return
        try:
            with reading_apart(self.work.reader, self.job.workers) as self.work.readers:
                yield
        finally:
            self.work.readers = None

    def _threads(self) -> ThreadPoolExecutor:
        """Threads that read and write; as many again where some wait for processes."""
        return ThreadPoolExecutor(self.job.workers * (1 if self.work.readers is None else 2))

    def say(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False)

    def find(self) -> Listing:
        return self._found(self.finder.find)

    def planned(self, study: Walked) -> Listing:
        """The inputs among what a look at the folder found."""
        return self._found(lambda: self.finder.planned(study))

    def _found(self, find: Callable[[], Listing]) -> Listing:
        began = time.perf_counter()
        listing = find()
        assert listing.accounted(), "a file is neither part of an input nor left aside"
        self.work.seconds.update({"find": time.perf_counter() - began})  # type: ignore[dict-item]
        return listing

    def report(self, listing: Listing) -> Summary:
        """Write the tables and, last, the manifest, for the inputs that are in the ledger."""
        return write_account(self._account(listing))

    def _account(self, listing: Listing) -> Account:
        seconds = {**self.work.seconds, "total": time.monotonic() - self.began}
        return Account(self.job, self.work, listing, self.settings, seconds)


def predict(job: Job, *, console: Console | None = None) -> Summary:
    """Predict every input below ``job.source``, or those that an earlier run of the same job left undone.

    Writes ``predictions.csv``, ``errors.csv``, ``cases.jsonl``, ``summary.md``, ``sources.private.csv``; for pictures
    ``masks/<task>/<name>.png`` and ``overlays/...``, for volumes ``cases/<name>/<task>.nii.gz``; and, last,
    ``manifest.json``. Failed inputs are tried again by the next run. The tables tell of the inputs that are in the
    source now; files of inputs that left it stay.

    Raises TrainingInterrupted after SIGINT or SIGTERM (the batch at hand is finished first), ``E-PRE-OUT`` when the
    output folder belongs to something else, ``E-PRE-LOCK`` when another job is writing there, and EnvironmentFailure
    when the disk or the device fails.
    """
    with opened(job, console) as session:
        return session.run()


@contextmanager
def opened(job: Job, console: Console | None = None) -> Iterator[Session]:
    """The job ready to run, its output folder locked; signals are noted until it ends."""
    began = time.monotonic()
    console = console or Console(stderr=True)
    check_folders(job)
    model, settings, work = _loaded(job, console)
    identity = {"bundle": "+".join(model.ids), "settings": settings}
    with quiet(), signals("batch") as caught, _folder(job, work, identity, caught):
        finder = replace(_finder(job, model), taken=work.ledger.taken)
        yield Session(job, work, finder, settings, caught, console, began)


@contextmanager
def _folder(job: Job, work: Work, identity: Mapping[str, str], caught: Sequence[int]) -> Iterator[None]:
    """The output folder, ready for this process: locked and tidy, and its ledger read."""
    if job.shard.rank:
        with shards.admitted(job.out, job.shard, caught) as work.budget:
            work.ledger = shards.own_ledger(job.out, job.shard, **identity)
            yield
        return
    with locked(job.out, code="E-PRE-LOCK", where=str(job.out)):
        shards.idle(job.out)
        if job.overwrite:
            clear(job.out)
        work.ledger = Ledger(job.out / LEDGER, **identity)
        shards.merge(work.ledger)
        shards.forget(job.out)
        tidy(job.out)
        shards.let_begin(job.out, job.shard.world, work.budget, caught)
        yield


def look_ahead(job: Job) -> tuple[Listing, list[Batch]]:
    """What a job would do, without writing anything: its inputs, and the batches of those that can be tried."""
    check_folders(job)
    console = Console(stderr=True)
    model, _, work = _loaded(job, console)
    listing = _finder(job, model).find()
    if listing.told:
        console.print(listing.told, highlight=False, markup=False)
    return listing, work.plan(listing.inputs)


def _loaded(job: Job, console: Console) -> tuple[Model, str, Work]:
    """The model, a digest of every setting that results depend on, and the work, still without its ledger."""
    bundles = [load_bundle(path) for path in (job.bundle, *job.also)]
    for bundle in bundles:
        preprocess = bundle.spec.preprocess
        if preprocess.volume is None and preprocess.channels not in (1, 3):
            raise UserError(
                "E-PRE-CHANNELS",
                f"the bundle takes {preprocess.channels} channels, image files hold 1 or 3",
                "use a bundle that was trained on image files",
                where=str(bundle.folder),
            )

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False)

    device, views = device_named(job.device), job.views or bundles[0].spec.views
    first = bundles[0].spec.preprocess
    if first.window is not None and first.volume is None:
        hold_memory()  # pictures: batches of one size
    known = _fingerprint(job, bundles[0], say)
    features = known is not None and "features" in known.gauges
    model = Model.of(bundles, device=device, views=views, say=say, features=features)
    if model.unsealed and not job.shard.rank:
        say(f"warning: {unsealed(model.unsealed)}; train again: a bundle that is written now has one")
    settings = {
        "medmtl": __version__,
        "views": views,
        "overlays": job.overlays,
        "output": plain(job.output),
        "gate": job.gate,
        "names": job.names,
        "policy": asdict(job.policy),
        "fill_nan": job.fill_nan,
    }
    work = Work(job, model, None, job.max_ram or default_budget() // job.shard.beside, known)  # type: ignore[arg-type] # set when locked
    check_coding(job.output, work.tasks)
    return model, digest(settings)[:12], work


def _fingerprint(job: Job, bundle: Bundle, say: Callable[[str], None]) -> Fingerprint | None:
    """What the gate compares with; a gate that refuses, without anything to compare with, would refuse nothing."""
    if job.gate == "off":
        return None
    known = read_fingerprint(bundle.folder, bundle.provenance)
    if known is None and job.gate == "refuse":
        raise UserError(
            "E-PRE-JOB",
            "gate is refuse, but the bundle has no fingerprint of its training images to compare with",
            "give --gate warn or off, or train again: a bundle that is written now has one",
            where=str(bundle.folder),
        )
    if known is None and not job.shard.rank:
        say("warning: the bundle has no fingerprint of its training images, so no input is compared with them")
    return known


def _finder(job: Job, model: Model) -> Finder:
    return Finder(
        job.source,
        model.spec.preprocess,
        policy=job.policy,
        exclude=(job.out,),
        threads=job.workers,
        hashed=job.names == "hash",
    )
