"""A table of labels as rows of text: CSV of whatever make, or the first sheet of an XLSX file."""

import csv
import datetime
import io
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from medmtl.errors import UserError

_SHOWN = 12
_ERRORS = ("#N/A", "#DIV/0!", "#VALUE!", "#REF!", "#NAME?", "#NUM!", "#NULL!")
_MOST_BYTES = 512 * 2**20  # of an unpacked sheet


@dataclass(frozen=True)
class Row:
    """One row: where it stands in its file (the header is line 1), and its cells by column."""

    line: int
    cells: dict[str, str]


@dataclass(frozen=True)
class Table:
    """The rows of a table, and what its reader should know."""

    name: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    warnings: tuple[str, ...] = ()


def read_table(path: Path) -> Table:
    """A CSV (comma, semicolon or tab; UTF-8, UTF-16 or, with a warning, Windows-1252) or XLSX file.

    Raises UserError ``E-ING-LABEL-...`` with the line: a row of another width, a column twice, a formula that was
    never computed, an error cell. Cells are named by line and column, never by what they hold.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(
            "E-ING-LABEL-FILE",
            f"the table cannot be read ({type(error).__name__})",
            "correct --labels",
            where=path.name,
        ) from error
    if content.startswith(b"PK\x03\x04"):
        return _xlsx(path.name, content)
    if content.startswith(b"\xd0\xcf\x11\xe0"):
        raise UserError("E-ING-LABEL-FILE", "an old Excel file (.xls)", "save it as .xlsx or .csv", where=path.name)
    return _csv(path.name, content)


def _csv(name: str, content: bytes) -> Table:
    text, warnings = _decoded(name, content)
    first = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    lines: list[tuple[int, list[str]]] = []
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                lines.append((reader.line_num, [cell.strip() for cell in cells]))
    except csv.Error as error:
        raise UserError(
            "E-ING-LABEL-FILE", str(error), "check the quotes", where=f"{name} line {reader.line_num}"
        ) from error
    return _table(name, lines, warnings)


def _decoded(name: str, content: bytes) -> tuple[str, tuple[str, ...]]:
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        try:
            return content.decode("utf-16"), ()
        except UnicodeDecodeError as error:
            raise _not_text(name, 1) from error
    try:
        return content.decode("utf-8-sig"), ()
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        try:
            text = content.decode("cp1252")
        except UnicodeDecodeError:
            raise _not_text(name, line) from error
        if "\0" in text:
            raise _not_text(name, line) from error
        return text, (f"W-ING-LABEL-TEXT line {line} is not UTF-8; the table was read as Windows-1252",)


def _not_text(name: str, line: int) -> UserError:
    return UserError("E-ING-LABEL-FILE", "not a table of text", "save it as CSV in UTF-8", where=f"{name} line {line}")


def _xlsx(name: str, content: bytes) -> Table:
    """The first sheet; of a formula, the value that the spreadsheet program computed when the file was saved."""
    import openpyxl

    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if sum(info.file_size for info in archive.infolist()) > _MOST_BYTES:
                raise UserError(
                    "E-ING-LABEL-FILE", "the sheet unpacks to more than 512 MiB", "save it as CSV", where=name
                )
        books = [openpyxl.load_workbook(io.BytesIO(content), read_only=True, data_only=only) for only in (True, False)]
        values, formulas = (book.worksheets[0].iter_rows(values_only=True) for book in books)
        lines = []
        for number, (row, source) in enumerate(zip(values, formulas, strict=True), start=1):
            cells = [_cell(name, number, n, *pair) for n, pair in enumerate(zip(row, source, strict=True), start=1)]
            if any(cells):
                lines.append((number, cells))
    except UserError:
        raise
    except Exception as error:  # openpyxl raises whatever a damaged part makes it raise
        raise UserError(
            "E-ING-LABEL-FILE", f"not a readable XLSX file ({type(error).__name__})", "save it as CSV", where=name
        ) from error
    width = max((len(_stripped(cells)) for _, cells in lines), default=0)
    return _table(name, [(number, (cells + [""] * width)[:width]) for number, cells in lines], ())


def _cell(name: str, line: int, column: int, value: object, source: object) -> str:
    where = f"{name} line {line}, column {column}"
    if value is None:
        if isinstance(source, str) and source.startswith("="):
            raise UserError(
                "E-ING-LABEL-FORMULA",
                "a formula whose value was never computed",
                "open the file in a spreadsheet program and save it, or save it as CSV",
                where=where,
            )
        return ""
    match value:
        case bool():
            return str(int(value))
        case float():
            return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)
        case datetime.datetime():
            return value.date().isoformat() if value.time() == datetime.time() else value.isoformat(" ")
        case datetime.date() | datetime.time():
            return value.isoformat()
    text = str(value).strip()
    if text in _ERRORS:
        raise UserError("E-ING-LABEL-FORMULA", f"an error cell ({text})", "correct or empty it", where=where)
    return text


def _table(name: str, lines: Sequence[tuple[int, list[str]]], warnings: tuple[str, ...]) -> Table:
    if not lines:
        raise UserError("E-ING-LABEL-FILE", "an empty table", "give a table with a header", where=name)
    header = _stripped(lines[0][1])
    for column in header:
        if not column or header.count(column) > 1:
            what = f"column {column!r} occurs twice" if column else f"column {header.index(column) + 1} has no name"
            raise UserError("E-ING-LABEL-COLUMN", what, "give every column its own name", where=name)
    rows = []
    for line, cells in lines[1:]:
        kept = cells if len(cells) <= len(header) else _stripped(cells)
        if len(kept) > len(header) or len(cells) < len(header):
            raise UserError(
                "E-ING-LABEL-WIDTH",
                f"the header has {len(header)} columns, the row {len(cells)}",
                "check the separators and quotes of this row",
                where=f"{name} line {line}",
            )
        rows.append(Row(line, dict(zip(header, kept + [""] * (len(header) - len(kept)), strict=True))))
    return Table(name, tuple(header), tuple(rows), warnings)


def _stripped(cells: Iterable[str]) -> list[str]:
    """Without the empty cells at the end."""
    kept = list(cells)
    while kept and not kept[-1]:
        kept.pop()
    return kept


def listed(lines: Sequence[int]) -> str:
    """Line numbers for a message."""
    more = f" and {len(lines) - _SHOWN} more" if len(lines) > _SHOWN else ""
    return ", ".join(str(line) for line in lines[:_SHOWN]) + more
