"""A drop folder: what is put into it is predicted when it has stopped growing, until somebody says stop.

A *study* is what lies in the folder under one name: a folder with all that is in it, or a single file. It is taken when
for a while none of its files appeared, vanished or changed. Files that are being copied are therefore never read; what
comes later to a study that was taken makes it one that has changed, and it is taken again.

Studies know nothing of one another: each is planned alone, and what was planned when it was taken is what the report
is made of. A series of which two studies hold a half each is two volumes, each with a warning. Tables and manifest are
written when all that had settled is taken, and every ten seconds until then, whole or not at all: once for many small
studies. With them goes, without names, which studies were taken, and as what, so that the next watch can tell of them
from the start, and of none that was changed or half copied meanwhile.

A study that ends the process (a decoder that crashes, memory that the system takes back) is begun at most twice: before
it is begun, that is written down, and afterwards erased. Then it is quarantined: each of its files is a row, and it is
left alone until it changes; touching a file is enough. Whether the study or a power cut ended the process is not known.

Steps leave a sign of life (:mod:`.heartbeat`), so that a watcher that hangs or died can be told from one at work.
"""

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from rich.console import Console

from medmtl.errors import OK, EnvironmentFailure, TrainingInterrupted, UserError
from medmtl.files import write_atomic
from medmtl.inference.heartbeat import Heart
from medmtl.inference.inputs import Finder
from medmtl.inference.job import Job, Summary
from medmtl.inference.listing import Listing
from medmtl.inference.pipeline import Session, opened
from medmtl.inference.reading import Loaded
from medmtl.ingest import earlier
from medmtl.ingest.walk import Found, Walked

_BEGUN = ".begun.json"  # studies that were begun and did not end: as what -> how often
_TAKEN = ".taken.json"  # studies that were taken: as what
_TRIES = 2
_POLL_S = 1.0
_REPORT_S = 10.0  # between two reports while many studies are taken: each is of all studies
_SPLIT = "W-PRE-SPLIT the series lies in several studies of the folder; each part is a volume of its own"

State = tuple[Found, ...]  # of a study: its files


@dataclass
class Clock:
    """Time, so that tests need not wait for it."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    wall: Callable[[], float] = time.time  # seconds since 1970


@dataclass
class Settled:
    """Which studies of a folder have stopped growing."""

    settle_s: float
    seen: dict[str, tuple[State, float]] = field(default_factory=dict)  # as what, since when
    taken: dict[str, State] = field(default_factory=dict)

    def look(self, states: Mapping[str, State], now: float) -> list[str]:
        """The studies to be taken now, sorted by name; forgets those that are gone."""
        self.taken = {name: state for name, state in self.taken.items() if name in states}
        self.seen = {
            name: known if (known := self.seen.get(name)) and known[0] == state else (state, now)
            for name, state in states.items()
        }
        return sorted(
            name
            for name, (state, since) in self.seen.items()
            if now - since >= self.settle_s and self.taken.get(name) != state
        )


@dataclass
class Taken:
    """What each study that was taken, and is still there, brought; written down without names for the next watch."""

    session: Session
    listings: dict[str, Listing] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)  # as what, of those that were taken to the end
    results: int = 0  # files of earlier jobs' results that lie in no study
    _told: str = ""

    @property
    def path(self) -> Path:
        return self.session.job.out / _TAKEN

    def recall(self, step: Callable[[], None]) -> None:
        """What an earlier watch took, of studies that are as they were then; no other file is opened."""
        known, finder = _tree(self.path), self.session.finder
        studies = self.look()
        self.keys = {name: key for name, study in studies.items() if (key := _key(name, study.files)) in known}
        self.listings = {name: finder.planned(studies[name], advance=lambda files: step()) for name in self.keys}

    def look(self) -> dict[str, Walked]:
        """The studies of the folder as they are now; drops those that are gone. Earlier jobs' results are none."""
        found = self.session.finder.look()
        studies = {name: study for name, study in found.items() if study.files}
        self.results = sum(
            aside.kind == earlier.KIND for name in found.keys() - studies.keys() for aside in found[name].asides
        )
        self.listings = {name: listing for name, listing in self.listings.items() if name in studies}
        self.keys = {name: key for name, key in self.keys.items() if name in studies}
        return studies

    def ended(self, name: str, key: str) -> None:
        """Write down that a study was taken to the end."""
        missing = [item.id for item in self.listings[name].inputs if item.id not in self.session.work.ledger.entries]
        assert not missing, f"a study was taken, but nothing is known of its inputs {missing}"
        self._tell_split(name)
        self.keys[name] = key

    def _tell_split(self, name: str) -> None:
        """A warning for every volume of a series that this study and another one hold: halves look like wholes."""
        mine = _by_series([self.listings[name]])
        if not mine:
            return
        others = _by_series(listing for other, listing in self.listings.items() if other != name)
        entries = self.session.work.ledger.entries
        told = [entries[id_] for series in mine.keys() & others.keys() for id_ in (*mine[series], *others[series])]
        new = [entry for entry in told if entry.status == "ok" and _SPLIT not in entry.warnings]
        self.session.work.ledger.append(replace(entry, warnings=(*entry.warnings, _SPLIT)) for entry in new)

    def report(self) -> Summary:
        aside = Listing((), {earlier.KIND: self.results} if self.results else {}, self.results)
        listing = Listing.joined([*self.listings.values(), aside])
        if listing.told not in ("", self._told):
            self._told = listing.told
            self.session.say(listing.told)
        write_atomic(self.path, json.dumps(dict.fromkeys(sorted(self.keys.values()), 1)))
        return self.session.report(listing)


def watch(job: Job, *, settle_s: float = 30.0, clock: Clock = Clock(), console: Console | None = None) -> Summary:
    """Predict what is put into ``job.source`` until SIGINT or SIGTERM, then return how it stands, with exit code 0.

    The batch at hand is finished first; the next watch goes on behind it.
    """
    if job.shard.world > 1:
        raise UserError("E-PRE-JOB", f"{job.shard.world} processes watch one folder", "start one", where="WORLD_SIZE")
    with opened(job, console) as session:
        session.finder = replace(session.finder, apart=True, taken=session.work.ledger.taken)
        settled, heart, taken = Settled(settle_s), _heart(session, clock), Taken(session)
        heart.turn("working")
        taken.recall(heart.step)
        with contextlib.suppress(TrainingInterrupted):
            while not session.caught:
                heart.turn("waiting")
                _round(taken, settled, clock, heart)
                if not session.caught:
                    clock.sleep(min(_POLL_S, max(settle_s, 0.01)))
        heart.turn("working")
        summary = replace(taken.report(), exit_code=OK)
        heart.turn("stopped")
        return summary


def _by_series(listings: Iterable[Listing]) -> dict[tuple[str, str], list[str]]:
    """Ids of volumes by study and series UID."""
    found: dict[tuple[str, str], list[str]] = {}
    for item in (item for listing in listings for item in listing.inputs):
        if item.stack is not None:
            first = item.stack.first
            found.setdefault((first.study_uid, first.series_uid), []).append(item.id)
    return found


def _round(taken: Taken, settled: Settled, clock: Clock, heart: Heart) -> None:
    """Take every study that has stopped growing, and report."""
    studies = taken.look()
    ready = settled.look({name: study.files for name, study in studies.items()}, clock.now())
    told, new = clock.now(), 0
    for name in ready:
        if taken.session.caught:
            break
        heart.turn("working")
        if not _unchanged(taken.session.finder, studies[name]):
            continue  # since the look; the next one will see what it became
        _take(taken, name, studies[name])
        settled.taken[name] = studies[name].files
        new += 1
        if clock.now() - told >= _REPORT_S:
            _report(taken, heart, new)
            told, new = clock.now(), 0
    if new:
        _report(taken, heart, new)


def _report(taken: Taken, heart: Heart, new: int) -> None:
    summary = taken.report()
    heart.took(summary.ok, summary.total - summary.ok, studies=new)


def _unchanged(finder: Finder, study: Walked) -> bool:
    """Whether the files of a study are as the look found them. What was added since makes it another one later."""
    root = finder.source.resolve()
    with contextlib.suppress(OSError):
        infos = ((found, (root / found.path).stat()) for found in study.files)
        return all(
            (info.st_size, info.st_mtime_ns, info.st_ino) == (found.size, found.mtime_ns, found.inode)
            for found, info in infos
        )
    return False


def _heart(session: Session, clock: Clock) -> Heart:
    """A heart that takes a step after each input that is read or written, layer that is computed and batch that is
    recorded.

    Layers, since a single pass of a large volume through a network can take minutes.
    """
    known = [entry.status for entry in session.work.ledger.entries.values()]
    heart = Heart(session.job.out, clock.wall, ok=known.count("ok"), failed=len(known) - known.count("ok"))
    for member in session.work.model.members:
        for module in member.model.modules():
            module.register_forward_hook(lambda *_: heart.step())
    session.work.stepped = heart.step
    return heart


def _take(taken: Taken, name: str, study: Walked) -> None:
    """Predict one study, unless it has ended the process twice as it is."""
    session = taken.session
    path, key = session.job.out / _BEGUN, _key(name, study.files)
    begun = _tree(path)
    if begun.get(key, 0) >= _TRIES:
        taken.listings[name] = session.planned(study)
        _quarantine(session, taken.listings[name])
        taken.ended(name, key)
        return
    write_atomic(path, json.dumps({**begun, key: begun.get(key, 0) + 1}))
    try:
        taken.listings[name] = session.planned(study)
        session._run(session.work.plan(taken.listings[name].inputs))
    except (TrainingInterrupted, EnvironmentFailure):  # not the study's fault
        write_atomic(path, json.dumps(begun))
        raise
    write_atomic(path, json.dumps(begun))
    taken.ended(name, key)


def _quarantine(session: Session, listing: Listing) -> None:
    error = UserError(
        "E-PRE-POISON",
        f"the process ended {_TRIES} times while the study was predicted",
        "if something else ended the process, touch one of the study's files, and it is tried again; else look at them",
    )
    work = session.work
    left = [item for item in listing.inputs if not _done(session, item.id)]
    work.ledger.append(work.failed(Loaded(item), error) for item in left)


def _done(session: Session, case_id: str) -> bool:
    known = session.work.ledger.entries.get(case_id)
    return known is not None and known.status == "ok"


def _key(name: str, state: State) -> str:
    """A study as it is: another one when a file of it changed."""
    text = json.dumps([name, [[found.path, found.size, found.mtime_ns] for found in state]])
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()


def _tree(path: Path) -> dict[str, int]:
    """The numbers by key that a file holds; none where it is absent or damaged."""
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        return {str(key): int(count) for key, count in tree.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
