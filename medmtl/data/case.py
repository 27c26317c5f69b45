"""One row of ``manifest.csv`` and the whole of it. *An empty cell is a missing label.*

Columns: ``case_id, group`` (patient or slide), ``domain`` (scanner, site, stain, data set; may be empty), ``split``
(``train``, ``val``, ``test`` or empty), ``image`` (path), any ``target.<name>`` (several annotators:
``target.<name>.<annotator>``) and any ``meta.<name>``. Paths are relative to the manifest and may not leave its folder.
"""

import csv
import difflib
import hashlib
import io
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from medmtl.errors import SafetyRefusal, UserError
from medmtl.files import inside, write_atomic

COLUMNS = ("case_id", "group", "domain", "split", "image")
SPLITS = ("train", "val", "test")
_SHOWN = 12  # problems listed in one message


@dataclass(frozen=True)
class Case:
    """One image of one patient or slide, with the labels that exist for it (raw cells, empty ones left out)."""

    case_id: str
    group: str
    image: str
    domain: str = ""
    split: str = ""
    targets: Mapping[str, str] = field(default_factory=dict)
    meta: Mapping[str, str] = field(default_factory=dict)
    row: int = 0  # line of the manifest, the header being line 1


@dataclass(frozen=True)
class Manifest:
    """The cases of a study, the folder that their paths are relative to, and the digest of the file's bytes."""

    root: Path
    cases: tuple[Case, ...]
    sha256: str
    targets: tuple[str, ...]  # target columns, in order
    name: str = "manifest.csv"

    @property
    def domains(self) -> tuple[str, ...]:
        """Every domain that occurs, sorted; the empty one (unknown) is left out."""
        return tuple(sorted({case.domain for case in self.cases} - {""}))

    def path(self, relative: str) -> Path:
        """A file of the study; refused when it leaves the folder of the manifest."""
        return inside(self.root, relative)


def read_manifest(path: Path, *, check_files: bool = True) -> Manifest:
    """Read and check ``path``; every problem is listed with its row, its file and its remedy."""
    content = _content(path)
    rows, header = _rows(content, path.name)
    _check_header(header, path.name)
    targets = tuple(column.removeprefix("target.") for column in header if column.startswith("target."))
    cases = tuple(_case(row, number) for number, row in rows)
    problems = [*_duplicates(cases), *(p for case in cases for p in _problems(case, path, check_files))]
    if not cases:
        problems.append("no rows; a manifest needs at least one case")
    if problems:
        more = f" (and {len(problems) - _SHOWN} more)" if len(problems) > _SHOWN else ""
        raise UserError(
            "E-MAN-ROW", "; ".join(problems[:_SHOWN]) + more, "correct these rows of the manifest", where=path.name
        )
    return Manifest(path.parent, cases, hashlib.sha256(content).hexdigest(), targets, path.name)


def write_manifest(path: Path, cases: Iterable[Case]) -> Path:
    """Write cases sorted by id, with the columns that any of them has; the bytes depend on the cases alone.

    A cell that a spreadsheet would run as a formula is refused rather than changed.
    """
    ordered = sorted(cases, key=lambda case: case.case_id)
    targets = list(dict.fromkeys(name for case in ordered for name in case.targets))
    metas = list(dict.fromkeys(name for case in ordered for name in case.meta))
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([*COLUMNS, *(f"target.{name}" for name in targets), *(f"meta.{name}" for name in metas)])
    for case in ordered:
        cells = [
            case.case_id,
            case.group,
            case.domain,
            case.split,
            case.image,
            *(case.targets.get(name, "") for name in targets),
            *(case.meta.get(name, "") for name in metas),
        ]
        formula = next((cell for cell in cells if is_formula(cell)), None)
        if formula is not None:
            raise UserError(
                "E-MAN-FORMULA",
                f"cell {formula!r} would run as a formula in a spreadsheet",
                "rename it",
                where=f"case {case.case_id}",
            )
        writer.writerow(cells)
    return write_atomic(path, stream.getvalue())


def is_formula(cell: str) -> bool:
    """Whether a spreadsheet takes the cell for a formula; a signed number is none."""
    if cell[:1] in ("+", "-"):
        try:
            float(cell)
        except ValueError:
            return True
    return cell[:1] in ("=", "@", "\t", "\r")


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(
            "E-MAN-FILE", "no such manifest", "run `make prepare` first or correct data.manifest", where=str(path)
        ) from error
    except IsADirectoryError as error:
        raise UserError(
            "E-MAN-FILE",
            "a folder, where a manifest was expected",
            "name the file in data.manifest, such as manifest.csv in that folder",
            where=str(path),
        ) from error
    except PermissionError as error:
        raise UserError(
            "E-MAN-FILE", "the manifest cannot be opened", "check that you may read it", where=str(path)
        ) from error


def _rows(content: bytes, name: str) -> tuple[list[tuple[int, dict[str, str]]], list[str]]:
    """Numbered rows and the header; UTF-8 with or without a byte-order mark, comma or semicolon."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UserError("E-MAN-TEXT", "not UTF-8 text", "save the file as UTF-8", where=f"{name} row {line}") from error
    first = text.split("\n", 1)[0]
    delimiter = ";" if ";" in first and "," not in first else ","
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows: list[tuple[int, dict[str, str]]] = []
    try:
        for row in reader:
            if None in row or None in row.values():
                raise UserError(
                    "E-MAN-WIDTH",
                    f"the header has {len(reader.fieldnames or [])} columns, the row another number",
                    "check the commas and quotes of this row",
                    where=f"{name} row {reader.line_num}",
                )
            rows.append((reader.line_num, {key.strip(): value.strip() for key, value in row.items()}))
    except csv.Error as error:
        raise UserError("E-MAN-CSV", str(error), "check the quotes", where=f"{name} row {reader.line_num}") from error
    return rows, [column.strip() for column in reader.fieldnames or []]


def _check_header(header: Sequence[str], name: str) -> None:
    missing = [column for column in COLUMNS if column not in header]
    if missing:
        raise UserError(
            "E-MAN-COLUMN",
            f"no column {', '.join(missing)}",
            f"add it; a manifest has {', '.join(COLUMNS)}",
            where=name,
        )
    repeated = sorted({column for column in header if header.count(column) > 1})
    if repeated:
        raise UserError("E-MAN-COLUMN", f"column {repeated[0]!r} occurs twice", "keep one", where=name)
    for column in header:
        if column not in COLUMNS and not column.startswith(("target.", "meta.")):
            close = difflib.get_close_matches(column, [*COLUMNS, f"target.{column}"], n=1)
            raise UserError(
                "E-MAN-COLUMN",
                f"unknown column {column!r}",
                f"name it {close[0]!r}, or {'meta.' + column!r} to carry it along"
                if close
                else f"name it {'target.' + column!r} or {'meta.' + column!r}",
                where=name,
            )


def _case(row: Mapping[str, str], number: int) -> Case:
    def named(prefix: str) -> dict[str, str]:
        return {key.removeprefix(prefix): value for key, value in row.items() if key.startswith(prefix) and value}

    return Case(
        row["case_id"],
        row["group"],
        row["image"],
        row["domain"],
        row["split"],
        named("target."),
        named("meta."),
        number,
    )


def _duplicates(cases: Sequence[Case]) -> list[str]:
    seen: dict[str, int] = {}
    problems = []
    for case in cases:
        key = unicodedata.normalize("NFC", case.case_id).casefold()  # one file name on macOS and Windows
        if key in seen:
            problems.append(f"row {case.row}: case_id {case.case_id!r} is also in row {seen[key]}; make ids unique")
        seen.setdefault(key, case.row)
    return problems


def _problems(case: Case, manifest: Path, check_files: bool) -> list[str]:
    """What is wrong with one row. A path outside the root is not listed but refused at once (SafetyRefusal)."""
    found = []
    for column in ("case_id", "group", "image"):
        if not getattr(case, column):
            found.append(f"row {case.row}: {column} is empty; every case needs one")
    if set(case.case_id) & set('/\\\0:*?"<>|\n') or case.case_id in (".", ".."):
        found.append(
            f"row {case.row}: case_id {case.case_id!r} cannot be a file name; use letters, digits, '-', '_', '.'"
        )
    if case.split not in ("", *SPLITS):
        found.append(f"row {case.row}: split {case.split!r} is not one of {', '.join(SPLITS)} or empty")
    if case.image and not (path := _image(case, manifest)).is_file() and check_files:
        found.append(f"row {case.row}: image {path.name!r} does not exist at {case.image}; restore it or drop the row")
    return found


def _image(case: Case, manifest: Path) -> Path:
    try:
        return inside(manifest.parent, case.image)
    except SafetyRefusal as error:
        where = f"{manifest.name} row {case.row}, image"
        raise SafetyRefusal(error.code, error.what, error.remedy, where=where) from error
