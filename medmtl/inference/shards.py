"""A job that several processes share (``torchrun``, or RANK and WORLD_SIZE by hand), through the output folder alone.

Every process plans all batches and takes each ``world``-th, so batches are those of a single process and results have
the same bytes. The first process (rank 0) holds the folder's lock, tidies it, lets the others begin, and, when they
have ended, merges their ledgers into ``cases.jsonl`` and writes the tables.

The others say that they wait with a token of their own (``.hello-<rank>``) and begin when the first has repeated it
(``.go-<rank>``), so nothing that an earlier job left counts. Each keeps a ledger (``.cases-<rank>.jsonl``) and, while
it works, a lock (``.lock-<rank>``), which goes with the process: who is dead is not waited for. What a job that was
ended left in such ledgers is merged by the next one, however many processes it has.
"""

import contextlib
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from medmtl.errors import EnvironmentFailure, TrainingInterrupted, UserError
from medmtl.files import write_atomic
from medmtl.inference.ledger import Ledger, read_ledger
from medmtl.ledger import begin_ledger, remove_outputs
from medmtl.outfolder import LEDGER

_PATIENCE_S = 600.0  # for the others to load their bundle, and for the first to read a long ledger
_POLL_S = 0.1
_TOKEN = 16  # characters
_RAY, _RAY_LOCK = ".ray-*", "lock"  # folders in OUT of commands on Ray, and the lock that each holds while it lives


@dataclass(frozen=True)
class Shard:
    """The share of one process: every ``world``-th batch, from ``rank`` on."""

    rank: int = 0
    world: int = 1
    beside: int = 1  # processes on this machine, which share its memory

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world:
            raise UserError(
                "E-PRE-SHARD",
                f"process {self.rank} of {self.world}",
                "give RANK from 0 to WORLD_SIZE - 1, as torchrun does",
                where="RANK",
            )

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> "Shard":
        """The share that RANK and WORLD_SIZE say; all of it without them."""
        try:
            rank, world, beside = (
                int(environment.get(name, least))
                for name, least in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_WORLD_SIZE", "1"))
            )
        except ValueError as error:
            raise UserError(
                "E-PRE-SHARD",
                f"RANK, WORLD_SIZE or LOCAL_WORLD_SIZE is no whole number ({error})",
                "start with torchrun, or unset them",
                where="RANK",
            ) from error
        return cls(rank, world, max(1, beside))


def _file(out: Path, what: str, rank: int) -> Path:
    return out / (f".cases-{rank}.jsonl" if what == "cases" else f".{what}-{rank}")


def ledgers(out: Path) -> list[Path]:
    """The ledgers of processes that shared a job and whose results are not merged yet."""
    return sorted(out.glob(".cases-*.jsonl"))


def idle(out: Path) -> None:
    """Refuses (``E-PRE-LOCK``) while a process of an earlier job still works in the folder."""
    for path in out.glob(".lock-*"):
        if _held(path):
            raise UserError(
                "E-PRE-LOCK",
                "a process of an earlier job is still writing to this folder",
                "wait for it, or choose another folder",
                where=str(out),
            )


def merge(ledger: Ledger) -> set[str]:
    """Bring what the other processes recorded into the ledger; their inputs that have a result."""
    out = ledger.path.parent
    merged: set[str] = set()
    for path in ledgers(out):
        begin_ledger(path)
        entries = read_ledger(path)
        ledger.check(entries)
        ledger.append(entries)
        merged |= {entry.id for entry in entries if entry.status == "ok"}
        remove_outputs(out, [path.name])
    return merged


def forget(out: Path) -> None:
    """Remove what processes said to one another in an earlier job, and what dead commands on Ray said to theirs."""
    for what in ("hello", "go", "done", "lock"):
        remove_outputs(out, [path.name for path in out.glob(f".{what}-*")])
    for folder in out.glob(_RAY):
        with contextlib.suppress(Timeout, OSError):  # it lives, or holds something else: it stays
            _forget_ray(folder)


def _forget_ray(folder: Path) -> None:
    """Remove the folder of a command on Ray; Timeout while the command lives. Without a lock it may be beginning."""
    names = {path.name for path in folder.iterdir()}
    if _RAY_LOCK not in names or folder.is_symlink():
        return
    with FileLock(folder / _RAY_LOCK, timeout=0):
        for name in (*sorted(names - {_RAY_LOCK}), _RAY_LOCK):
            (folder / name).unlink()
    folder.rmdir()


def let_begin(out: Path, world: int, budget: int, caught: Sequence[int]) -> None:
    """Of the first process: wait until each of the others is there, and let it begin, with the memory limit that the
    batches depend on."""
    left = set(range(1, world))
    for _ in _patiently("not every process that was announced has come", caught):
        for rank in sorted(left):
            if len(token := _text(_file(out, "hello", rank))) == _TOKEN:
                write_atomic(_file(out, "go", rank), f"{token} {budget}")
                left.remove(rank)
        if not left:
            return


@contextlib.contextmanager
def admitted(out: Path, shard: Shard, caught: Sequence[int]) -> Iterator[int]:
    """Of another process: wait until it may begin; yields the first one's memory limit in bytes."""
    token = secrets.token_hex(_TOKEN // 2)
    hello, go = (_file(out, what, shard.rank) for what in ("hello", "go"))
    out.mkdir(parents=True, exist_ok=True)
    budget = ""
    for _ in _patiently("the first process lets nobody begin", caught):
        repeated, _, budget = _text(go).partition(" ")
        if repeated == token:
            break
        if _text(hello) != token:  # not said yet, or the first process has only now tidied up
            hello.write_text(token, encoding="ascii")  # no temporary file, which tidying up would remove
    lock = FileLock(_file(out, "lock", shard.rank), timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise UserError(
            "E-PRE-LOCK", "another process has this rank", "start each rank once", where=f"RANK {shard.rank}"
        ) from error
    try:
        yield int(budget)
    finally:
        lock.release()


def ended(out: Path, shard: Shard) -> None:
    """Of another process: say that its whole share is recorded."""
    write_atomic(_file(out, "done", shard.rank), "")


def own_ledger(out: Path, shard: Shard, *, bundle: str, settings: str) -> Ledger:
    """The ledger of another process than the first, which knows what the job's ledger holds."""
    own = Ledger(_file(out, "cases", shard.rank), bundle=bundle, settings=settings)
    before = read_ledger(out / LEDGER) if (out / LEDGER).exists() else ()
    own.check(before)
    own.entries = {**{entry.id: entry for entry in before}, **own.entries}
    return own


def await_others(out: Path, world: int, caught: Sequence[int]) -> None:
    """Of the first process: wait until the others have ended; EnvironmentFailure when one did not finish."""
    left, began = set(range(1, world)), time.monotonic()
    while left:
        _raise_if(caught)
        for rank in sorted(left):
            begun = _file(out, "cases", rank).exists()  # made when the lock is held
            working = _held(_file(out, "lock", rank)) if begun else time.monotonic() - began < _PATIENCE_S
            if _file(out, "done", rank).exists():
                left.remove(rank)
            elif not working:
                raise EnvironmentFailure(
                    "E-PRE-SHARD",
                    f"process {rank} ended before its share was done",
                    "see what it says, then run again: what is done is kept",
                    where=str(out),
                )
        time.sleep(_POLL_S if left else 0)


def _patiently(what: str, caught: Sequence[int]) -> Iterator[None]:
    """Once every now and then, until patience ends."""
    began = time.monotonic()
    while time.monotonic() - began < _PATIENCE_S:
        _raise_if(caught)
        yield
        time.sleep(_POLL_S)
    raise EnvironmentFailure(
        "E-PRE-SHARD",
        f"{what} within {_PATIENCE_S:.0f} s",
        "start RANK 0 to WORLD_SIZE - 1 together, with the same OUT",
        where="RANK",
    )


def _raise_if(caught: Sequence[int]) -> None:
    if caught:
        raise TrainingInterrupted(caught[0])


def _held(path: Path) -> bool:
    """Whether a process that is alive holds a lock."""
    if not path.exists():
        return False
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        return True
    lock.release()
    return False


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except (OSError, ValueError):
        return ""
