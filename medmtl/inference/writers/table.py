"""``predictions.csv`` and ``errors.csv``: one row per image; their bytes depend on the results alone."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from medmtl.files import write_atomic
from medmtl.inference.ledger import Cell, Entry
from medmtl.tasks import AnyTask
from medmtl.tasks.classification import ClassificationBase
from medmtl.tasks.ordinal import Ordinal
from medmtl.tasks.regression import Regression
from medmtl.tasks.segmentation import Segmentation

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "'")  # the last one so that escaping can be undone


def columns(tasks: Mapping[str, AnyTask], *, volumes: bool = False, bundles: int = 1) -> tuple[str, ...]:
    """The columns of ``predictions.csv``; of volumes with millilitres, of several bundles with their spread."""
    return (
        "image",
        "status",
        *(column for name, task in tasks.items() for column in _of(name, task, volumes, bundles)),
        "gate",
        "gate.reason",
        "refer_to_reader",
        "refer.reason",
        "bundle",
        "warnings",
    )


def _of(name: str, task: AnyTask, volumes: bool, bundles: int) -> list[str]:
    spread = [f"{name}.spread"] if bundles > 1 else []
    match task:
        case ClassificationBase():
            return [f"{name}.label", *(f"{name}.p.{label}" for label in task.classes), *spread]
        case Ordinal():
            mean = [f"{name}.expected"] if task.numbers else []
            return [f"{name}.level", *mean, *(f"{name}.p.{level}" for level in task.levels), *spread]
        case Regression():
            return [f"{name}.value", f"{name}.unit", *spread]
        case Segmentation():
            sizes = [f"{name}.ml.{label}" for label in task.classes[1:]] if volumes else []
            return [*(f"{name}.fraction.{label}" for label in task.classes[1:]), *sizes, *spread, f"{name}.mask"]
    raise AssertionError(f"no columns for a task of kind {task.kind}")


def global_cells(name: str, task: AnyTask, decoded: Tensor) -> dict[str, Cell]:
    """Cells of a task without a map: the label at the frozen threshold or the median level, with probabilities [K], or
    a value.

    ``expected`` is the mean of the levels' numbers (CDR: between 0 and 3), not the mean place among the levels that the
    case tables of an evaluation hold. Grades that are words have none: a mean of places would look like a grade.
    """
    row = task.row(decoded, None)
    if isinstance(task, Regression):
        return {f"{name}.value": row["prediction"], f"{name}.unit": task.unit}
    probabilities = {f"{name}.{key}": value for key, value in row.items() if key.startswith("p.")}
    if isinstance(task, Ordinal):
        level = task.levels[int(float(row["prediction"])) - task.lowest]
        mean = {f"{name}.expected": float(task.quantity(decoded[None])[0])} if task.numbers else {}
        return {f"{name}.level": level, **mean, **probabilities}
    return {f"{name}.label": row["predicted_label"], **probabilities}


def write_predictions(path: Path, entries: Iterable[Entry], header: Sequence[str]) -> Path:
    """One row per image, in the order given. An image without result has empty cells, and is referred to a reader."""
    rows = (
        {
            "image": entry.id,
            "status": entry.status,
            **(entry.cells if entry.status == "ok" else {"refer_to_reader": "true", "refer.reason": entry.code}),
            "bundle": entry.bundle,
            "warnings": "; ".join(entry.warnings),
        }
        for entry in entries
    )
    return _write(path, header, rows)


def write_errors(path: Path, entries: Iterable[Entry]) -> Path:
    """One row per image without result: what is wrong with it and what to do."""
    rows = (
        {"image": e.id, "status": e.status, "code": e.code, "message": e.message, "remedy": e.remedy}
        for e in entries
        if e.status != "ok"
    )
    return _write(path, ("image", "status", "code", "message", "remedy"), rows)


def cell(value: Cell) -> str:
    """A number with 7 significant digits (what float32 holds), or text that no spreadsheet runs as a formula.

    Such text gets an apostrophe in front, as does text that begins with one: to undo it, drop one leading apostrophe.
    """
    if isinstance(value, str):
        return f"'{value}" if value.startswith(_FORMULA) else value
    return f"{value:.7g}"


def _write(path: Path, header: Sequence[str], rows: Iterable[Mapping[str, Cell]]) -> Path:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([cell(name) for name in header])
    for row in rows:
        assert set(row) <= set(header), sorted(set(row) - set(header))
        writer.writerow([cell(row.get(name, "")) for name in header])
    # A file name need not be UTF-8 on Linux; its odd bytes appear as \udcXX
    return write_atomic(path, stream.getvalue().encode("utf-8", "backslashreplace"))
