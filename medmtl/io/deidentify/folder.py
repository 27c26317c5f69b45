"""A tree of DICOM files de-identified into ``OUT/patient/study/series/instance.dcm``, with a row for every file.

Beside OUT lies a private folder (0700) with the key, the ledger that a second run resumes from, and the table that says
which file an id of the report was. OUT itself holds pseudonyms only.
"""

import csv
import io
import json
import multiprocessing
import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path

from filelock import FileLock, Timeout

from medmtl.bars import bar
from medmtl.errors import NOTHING, OK, PARTIAL
from medmtl.files import append_line, disk_errors, inside, sha256, write_atomic
from medmtl.io.deidentify.files import Job, Row, deidentify_file
from medmtl.io.deidentify.key import Key, load_or_make_key, private_folder, remember_source, write_private
from medmtl.io.deidentify.profile import Options
from medmtl.io.deidentify.pseudonyms import Pseudonyms
from medmtl.io.reasons import refusal

KEY, LEDGER, PATHS = "key.json", "deidentify.jsonl", "files.json"  # in the private folder
REPORT_CSV, REPORT_JSON = "deidentification.csv", "deidentification.json"  # in OUT
_BATCH = 32  # files between two syncs of the ledger
_FEW = 64  # files for which starting processes does not pay


@dataclass(frozen=True)
class Outcome:
    """What became of every file."""

    rows: tuple[Row, ...]  # of the files that are DICOM or should be, by id
    ignored: Mapping[str, int] = field(default_factory=dict)  # what is no DICOM, by kind
    resumed: int = 0  # of the rows: done by an earlier run

    @property
    def ok(self) -> int:
        """How many files were de-identified."""
        return sum(row.status == "ok" for row in self.rows)

    @property
    def refused(self) -> int:
        """How many were not, each with a code."""
        return len(self.rows) - self.ok

    @property
    def exit_code(self) -> int:
        """0 if every DICOM file was done, 3 if some were, 4 if none was."""
        return NOTHING if not self.ok else PARTIAL if self.refused else OK


def default_private(out: Path) -> Path:
    """``OUT.private``, beside OUT."""
    return out.resolve().with_name(out.resolve().name + ".private")


def deidentify_folder(
    source: Path, out: Path, *, private: Path | None = None, options: Options = Options(), workers: int = 1
) -> Outcome:
    """De-identify every DICOM file below ``source``, whatever its name, into ``out``.

    Run again, it does what is missing. A file that cannot be done is a row of the report and stops no other one.
    Raises SafetyRefusal where the folders lie in each other or the key is unsafe, UserError (``E-DEID-SETTINGS``)
    where ``out`` was made with another key or other options, EnvironmentFailure when the disk fails.
    """
    source, out = source.resolve(), out.resolve()
    if not source.is_dir():
        raise refusal("E-DEID-SOURCE", "no such folder", where=str(source))
    if source.is_relative_to(out) or out.is_relative_to(source):
        raise refusal("E-DEID-PLACE", "the output and the source folder lie in each other", where=str(out))
    private = private_folder(private or default_private(out), out=out, source=source)
    with _locked(private):
        load_or_make_key(private / KEY, out=out)
        key = remember_source(private / KEY, source)
        return _run(source, out, private, key, options, workers)


def _run(source: Path, out: Path, private: Path, key: Key, options: Options, workers: int) -> Outcome:
    ledger = _Ledger(private / LEDGER, f"{options.name()} key={Pseudonyms(key).fingerprint()} out={out}")
    paths, asides = walk_files(source)
    jobs = list(_jobs(paths, out, key, options))
    refused = [Row(Pseudonyms(key).file(os.fsencode(path)), "refused", code, what) for path, code, what in asides]
    names = {job.id: job.path for job in jobs} | {row.id: path for row, (path, *_) in zip(refused, asides, strict=True)}
    gone = _remember_paths(private / PATHS, names, source)
    ledger.forget(gone)
    todo = [job for job in jobs if not ledger.done(job, out)]
    ledger.append(refused)
    ignored: Counter[str] = Counter()
    with bar("de-identifying", len(todo)) as advance:
        for batch in _batched(_results(todo, workers), _BATCH):
            ignored.update(row.kind for row in batch if row.status == "ignored")
            ledger.append([row for row in batch if row.status != "ignored"])
            advance(len(batch))
    ledger.append(_conflicts(ledger.rows.values(), out))
    rows = tuple(row for _, row in sorted(ledger.rows.items()))
    outcome = Outcome(rows, dict(sorted(ignored.items())), resumed=len(jobs) - len(todo))
    _report(out, outcome, options)
    return outcome


def _results(jobs: list[Job], workers: int) -> Iterator[Row]:
    if workers <= 1 or len(jobs) < _FEW:
        yield from map(deidentify_file, jobs)
        return
    context = multiprocessing.get_context("spawn")  # fork is unsafe once torch has threads
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        try:
            yield from pool.map(deidentify_file, jobs, chunksize=8)
        finally:
            pool.shutdown(cancel_futures=True)


def _conflicts(rows: Iterable[Row], out: Path) -> list[Row]:
    """Files of one SOP Instance UID and different content: none of them is right, so the first one goes too."""
    every = list(rows)
    claimed = {row.output: row for row in every if row.code == "E-DEID-DUPLICATE"}
    losers = [row for row in every if row.status == "ok" and row.output in claimed]
    for row in losers:
        with disk_errors(out):
            inside(out, row.output).unlink(missing_ok=True)
    return [
        replace(row, status="refused", code="E-DEID-DUPLICATE", what=claimed[row.output].what, sha256="")
        for row in losers
    ]


def walk_files(source: Path) -> tuple[list[tuple[str, os.stat_result]], list[tuple[str, str, str]]]:
    """Regular files below ``source`` (links to folders are not followed), and (path, code, what) of what is refused.

    A link to a file of the tree is left to that file; one that leads out of the tree is refused.
    """
    files, asides = [], []

    def unlisted(error: OSError) -> None:
        asides.append((str(error.filename), "E-FILE-OPEN", "the folder cannot be listed"))

    for folder, folders, names in os.walk(source, onerror=unlisted):
        folders.sort()
        for name in sorted(names):
            path = os.path.join(folder, name)  # noqa: PTH118  names may be no UTF-8
            try:
                info = os.lstat(path)
            except OSError:
                asides.append((path, "E-FILE-OPEN", "the file vanished"))
                continue
            if stat.S_ISREG(info.st_mode):
                files.append((path, info))
            elif stat.S_ISLNK(info.st_mode) and not Path(path).resolve().is_relative_to(source):
                asides.append((path, "E-SEC-PATH", "the link leads out of the source folder"))
    return files, asides


def _jobs(paths: list[tuple[str, os.stat_result]], out: Path, key: Key, options: Options) -> Iterator[Job]:
    pseudonyms = Pseudonyms(key)
    for path, info in paths:
        identity = pseudonyms.file(os.fsencode(path))
        yield Job(identity, path, info.st_size, info.st_mtime_ns, str(out), key, options)


def _remember_paths(path: Path, names: Mapping[str, str], source: Path) -> set[str]:
    """Add ids and the paths behind them to the private table; returns the ids below ``source`` that are no more."""
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    write_private(path, json.dumps({**known, **names}, indent=0))
    return {name for name, old in known.items() if name not in names and Path(old).is_relative_to(source)}


class _Ledger:
    """One line per file that was dealt with; the last line of a file counts. A line that a kill cut off is no line."""

    def __init__(self, path: Path, settings: str) -> None:
        self.path, self.rows = path, dict[str, Row]()
        if not path.exists():
            write_private(path, json.dumps({"settings": settings}) + "\n")
        head, *lines = path.read_bytes().split(b"\n")
        if json.loads(head).get("settings") != settings:
            raise refusal("E-DEID-SETTINGS", "the output folder was made with another key or other options")
        for line in lines:
            try:
                tree = json.loads(line)
                row = Row(**{**tree, "notes": tuple(tree["notes"])})
            except (ValueError, TypeError, KeyError):
                continue
            self.rows[row.id] = row

    def append(self, rows: list[Row]) -> None:
        if rows:
            append_line(self.path, "\n".join(json.dumps(asdict(row)) for row in rows))
        self.rows |= {row.id: row for row in rows}

    def forget(self, gone: set[str]) -> None:
        """Leave out what was refused and has been taken away since; results stay, whatever became of their source."""
        self.rows = {key: row for key, row in self.rows.items() if row.status == "ok" or key not in gone}

    def done(self, job: Job, out: Path) -> bool:
        """Whether the file was done, has not changed since, and its output is whole; an output that is not, goes."""
        row = self.rows.get(job.id)
        if row is None or row.status != "ok":
            return False
        output = inside(out, row.output)
        same = (row.size, row.mtime_ns) == (job.size, job.mtime_ns)
        if same and output.is_file() and sha256(output) == row.sha256:
            return True
        shared = any(other.output == row.output and other.id != row.id for other in self.rows.values())
        if same or not shared:  # one that changed leaves an equal file's output alone
            with disk_errors(output):
                output.unlink(missing_ok=True)
        return False


def _report(out: Path, outcome: Outcome, options: Options) -> None:
    table = io.StringIO()
    columns = ("file", "status", "code", "what", "remedy", "notes", "output")
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(columns)
    for row in outcome.rows:
        writer.writerow((row.id, row.status, row.code, row.what, row.remedy, " ".join(row.notes), row.output))
    write_atomic(out / REPORT_CSV, table.getvalue())
    codes = Counter(row.code for row in outcome.rows if row.code)
    summary = {
        "profile": "DICOM PS3.15 E.1 " + options.name(),
        "codes": [code for code, _ in options.codes()],
        "ok": outcome.ok,
        "refused": dict(sorted(codes.items())),
        "ignored": dict(outcome.ignored),
    }
    write_atomic(out / REPORT_JSON, json.dumps(summary, indent=1) + "\n")


def _batched(rows: Iterator[Row], size: int) -> Iterator[list[Row]]:
    while batch := list(islice(rows, size)):
        yield batch


@contextmanager
def _locked(private: Path) -> Iterator[None]:
    try:
        with FileLock(private / "lock", timeout=0, mode=0o600):
            yield
    except Timeout as error:
        raise refusal("E-DEID-LOCK", "another run is using the private folder", where=str(private)) from error
