"""What preparing a raw data set has in common: its tables, the account of every row, images and masks put in place."""

import csv
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import typer
from PIL import Image
from rich.console import Console

from medmtl.agreement.masks import foreground
from medmtl.data.case import Case, write_manifest
from medmtl.errors import EnvironmentFailure, NothingUsable, UserError
from medmtl.files import atomic_path, inside, write_atomic
from medmtl.io.raster import read_image, read_mask, write_png

Row = dict[str, str]
USED, LEFT_OUT, ERROR = "used", "left out", "error"
_SOFT_PX = 2  # how far from its edge an anti-aliased mask may be grey


class LeftOut(Exception):
    """Why a row gives no case although nothing is wrong with it; ``remedy`` is empty where there is none."""

    def __init__(self, reason: str, remedy: str = "") -> None:
        self.reason, self.remedy = reason, remedy
        super().__init__(reason)


@dataclass(frozen=True)
class Place:
    """A row of a table of the source, as the report names it."""

    table: str
    row: int
    case_id: str


@dataclass
class Report:
    """What became of every source row. A used row may have remarks: what of it is *not* used, and what to do."""

    lines: list[tuple[str, int, str, str, str, str]] = field(default_factory=list)

    def add(self, place: Place, status: str, reason: str = "", remedy: str = "") -> None:
        self.lines.append((place.table, place.row, place.case_id, status, reason, remedy))

    def refuse(self, place: Place, problem: UserError | LeftOut) -> None:
        """Add why a row is not used; raises what is wrong with the machine (a full disk), not with the row."""
        if isinstance(problem, EnvironmentFailure):
            raise problem
        if isinstance(problem, LeftOut):
            self.add(place, LEFT_OUT, problem.reason, problem.remedy)
        else:
            self.add(place, ERROR, f"{problem.what} ({problem.code})", problem.remedy)

    def count(self, status: str) -> int:
        return sum(line[3] == status for line in self.lines)

    def settle(self, cases: Sequence[Case], out: Path, where: str = "") -> None:
        """Write ``prepare_report.csv`` and ``manifest.csv`` into ``out``; without cases NothingUsable, no manifest."""
        self.write(out / "prepare_report.csv")
        if not cases:
            what = f"none of {len(self.lines)} rows is usable"
            raise NothingUsable("E-PREP-NONE", what, "see prepare_report.csv", where=where)
        write_manifest(out / "manifest.csv", cases)

    def write(self, path: Path) -> Path:
        with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow(("table", "row", "case_id", "status", "reason", "remedy"))
            writer.writerows(sorted(self.lines))
        return path

    def summary(self) -> Iterator[str]:
        """What a user reads at the end: how many rows are used, why the others are not, where labels were dropped."""
        counts = {status: self.count(status) for status in (USED, LEFT_OUT, ERROR)}
        yield f"{counts[USED]} of {len(self.lines)} rows are used, {counts[LEFT_OUT]} left out, {counts[ERROR]} wrong"
        for status in (ERROR, LEFT_OUT, USED):
            reasons = Counter(line[4] for line in self.lines if line[3] == status and line[4])
            yield from (f"  {status}, {reason}: {count}" for reason, count in reasons.most_common(10))


def command(prepare: Callable[[Console], Iterable[str]], out: Path) -> None:
    """Run ``prepare`` for somebody at a terminal: its lines and the manifest's path, or the error and its exit code."""
    console = Console(stderr=True)
    try:
        lines = prepare(console)
    except UserError as error:
        console.print(str(error), style="red", markup=False, soft_wrap=True)
        raise typer.Exit(error.exit_code) from error
    for line in (*lines, str(out / "manifest.csv")):
        console.print(line, markup=False, soft_wrap=True)


@dataclass(frozen=True)
class Remark:
    """A label of a used row that is not used, or used after a change."""

    what: str
    remedy: str = ""


def remarked(remarks: Iterable[Remark]) -> tuple[str, str]:
    """Reason and remedy of a used row, for the report."""
    listed = list(remarks)
    remedies = dict.fromkeys(remark.remedy for remark in listed if remark.remedy)
    return "; ".join(remark.what for remark in listed), "; ".join(remedies)


class Groups:
    """Which names belong together: a patient's images, or the same image under two names (union-find)."""

    def __init__(self) -> None:
        self._parent: dict[str, str] = {}

    def name(self, member: str) -> str:
        """The one name of ``member``'s group: the first in order of all that were joined."""
        while (parent := self._parent.get(member, member)) != member:
            member = parent
        return member

    def join(self, one: str, other: str) -> None:
        first, second = sorted((self.name(one), self.name(other)))
        self._parent[second] = first


def header(path: Path) -> set[str]:
    """The columns of a table; empty where there is no such file or it is not text."""
    try:
        with path.open(newline="", encoding="utf-8-sig", errors="replace") as stream:
            return {name.strip() for name in next(csv.reader(stream, delimiter=_delimiter(path)), [])}
    except (OSError, csv.Error):
        return set()


def read_table(path: Path, needed: Collection[str]) -> list[tuple[int, Row]]:
    """Numbered rows (line of the file, the header being line 1), stripped; comma or semicolon, UTF-8.

    Raises UserError for a missing column, for bytes that are not UTF-8 and for a row of another width.
    """
    missing = sorted(set(needed) - header(path))
    if missing:
        raise UserError("E-PREP-COLUMN", f"no column {', '.join(missing)}", "restore the table", where=path.name)
    rows = []
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream, delimiter=_delimiter(path), strict=True)
            for row in reader:
                if None in row or None in row.values():
                    raise UserError(
                        "E-PREP-WIDTH",
                        f"the header has {len(reader.fieldnames or [])} columns, the row another number",
                        "check its commas and quotes",
                        where=f"{path.name} row {reader.line_num}",
                    )
                rows.append((reader.line_num, {key.strip(): cell.strip() for key, cell in row.items()}))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError("E-PREP-TEXT", f"not a UTF-8 CSV table ({error})", "save it as one", where=path.name) from error
    return rows


def _delimiter(path: Path) -> str:
    with path.open(encoding="utf-8-sig", errors="replace") as stream:
        first = stream.readline()
    return ";" if ";" in first and "," not in first else ","


def file_name(text: str) -> str:
    """``text`` as part of a file or column name: ASCII letters, digits, ``-`` and ``_``; never empty, never hidden."""
    safe = "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "_" for c in text.strip())
    return safe if safe.strip("_-") else f"x{hashlib.sha256(text.encode()).hexdigest()[:8]}"


@dataclass(frozen=True)
class Placed:
    """An image of the prepared study."""

    path: Path
    native: tuple[int, int]  # rows and columns of the source image, upright
    shape: tuple[int, int]  # of the placed one
    digest: str  # SHA-256 of the source's bytes


def place_image(source: Path, folder: Path, name: str, *, max_side: int | None = None) -> Placed:
    """``source`` as ``folder/<name>.<suffix>``: linked or copied, and known to be a readable RGB image.

    Only an image with a longer side than ``max_side`` is decoded and written anew, smaller, as PNG (Lanczos).
    """
    content = source.read_bytes() if source.is_file() else b""
    pixels = read_image(source, channels=3)
    native = (pixels.shape[1], pixels.shape[2])
    digest = hashlib.sha256(content).hexdigest()
    if max_side is None or max(native) <= max_side:
        path = folder / f"{name}{source.suffix.lower()}"
        _link(source, path, content)
        return Placed(path, native, native, digest)
    factor = max_side / max(native)
    shape = (max(1, round(native[0] * factor)), max(1, round(native[1] * factor)))
    path = folder / f"{name}.png"
    full = Image.fromarray((pixels.transpose(1, 2, 0) * 255).round().astype(np.uint8))
    small = np.asarray(full.resize(shape[::-1], Image.Resampling.LANCZOS))
    if not _holds(path, small):
        write_png(path, small)
    return Placed(path, native, shape, digest)


def _holds(path: Path, pixels: np.ndarray) -> bool:
    """Whether the file is there, readable and equal, so that a second run leaves it alone."""
    try:
        found = (read_image(path, channels=3) * 255).round().transpose(1, 2, 0)
    except UserError:
        return False
    return np.array_equal(found, pixels)


def _link(source: Path, path: Path, content: bytes) -> None:
    if path.is_file() and (path.samefile(source) or path.read_bytes() == content):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    linked = path.with_name(f".{path.name}.tmp{path.suffix}")
    linked.unlink(missing_ok=True)
    try:
        os.link(source.resolve(), linked)
        linked.replace(path)
    except OSError:  # another disk, or a file system without links
        write_atomic(path, content)


def read_binary(path: Path, shape: tuple[int, int]) -> tuple[np.ndarray, Remark | None]:
    """A mask as bool [H, W] of ``shape``, and a remark where its soft edges were cut at half.

    Values are judged by :func:`medmtl.agreement.masks.foreground`: two of them, and grey within 2 px of the edge
    (anti-aliasing). Raises UserError for anything else, and for another size: that is another image's mask.
    """
    mask = read_mask(path)
    if mask.shape != shape:
        raise UserError(
            "E-PREP-SIZE",
            f"mask of {mask.shape[1]} x {mask.shape[0]} px for an image of {shape[1]} x {shape[0]} px",
            "export the mask at the size of its image",
            where=path.name,
        )
    soft = len(np.unique(mask)) > 2
    pixels = foreground(mask, where=path.name, edge_px=_SOFT_PX)
    return pixels, Remark("soft mask edges were cut at half") if soft else None


def place_mask(mask: np.ndarray, path: Path, shape: tuple[int, int]) -> Path:
    """Write bool [H, W] as a PNG of 0 and 1 of ``shape`` (smaller: a pixel belongs to the mask if half of it does)."""
    if mask.shape != shape:
        full = Image.fromarray(mask.astype(np.uint8) * 255)
        mask = np.asarray(full.resize(shape[::-1], Image.Resampling.BOX)) >= 128
    try:
        if np.array_equal(read_mask(path), mask):
            return path
    except UserError:
        pass  # not there yet, or cut off: written anew
    return write_png(path, mask)


def file_inside(root: Path, relative: str, what: str) -> Path:
    """A file that a table names; it must be under ``root`` (SafetyRefusal) and exist (UserError)."""
    path = inside(root, relative)
    if not path.is_file():
        raise UserError("E-PREP-FILE", f"no {what} {Path(relative).name!r}", "restore the file or correct the table")
    return path
