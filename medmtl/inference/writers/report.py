"""A case as one HTML file that opens anywhere, and the page over all cases: no network, no script, the same bytes."""

import os
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path, PurePosixPath
from urllib.parse import quote

from medmtl import __version__
from medmtl.files import write_atomic
from medmtl.inference.ledger import Cell, Entry
from medmtl.inference.prediction import CasePrediction
from medmtl.inference.writers.findings import NOTICE, threshold_of, volume_mm3
from medmtl.inference.writers.montage import pictures, shown, strip
from medmtl.inference.writers.overlay import colour
from medmtl.io.reasons import REMEDY
from medmtl.io.volume import Volume
from medmtl.tasks import AnyTask
from medmtl.tasks.classification import ClassificationBase
from medmtl.tasks.ordinal import Ordinal
from medmtl.tasks.regression import Regression
from medmtl.tasks.segmentation import Segmentation

Row = Sequence[str | tuple[str, str]]
NAME = "report.html"
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_STYLE = """
:root { --ink: #111827; --soft: #6b7280; --line: #e5e7eb; --blue: #0072b2; --warn: #d55e00; }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; color: var(--ink);
  max-width: 1120px; margin: 0 auto; padding: 2rem 1.25rem 4rem; background: #fff; }
h1 { font-size: 1.6rem; margin: 0 0 .25rem; overflow-wrap: anywhere; } h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem;
  border-bottom: 2px solid var(--blue); padding-bottom: .2rem; }
.banner { background: #fff4e5; border-left: 4px solid var(--warn); padding: .5rem .9rem; margin: .8rem 0;
  font-weight: 600; }
.soft, figcaption { color: var(--soft); } .warn { color: #9a3412; } .scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; margin: .3rem 0 .8rem; min-width: 40%; }
th, td { padding: .35rem .6rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th { color: var(--soft); font-weight: 600; } td.n { text-align: right; font-variant-numeric: tabular-nums; }
td.answer { font-weight: 600; font-size: 1rem; overflow-wrap: anywhere; }
.bar { position: relative; display: block; width: 220px; height: .8rem; background: var(--line); border-radius: 3px;
  margin-top: .35rem; } .bar b { position: absolute; inset: 0 auto 0 0; background: var(--blue); border-radius: 3px; }
.bar i { position: absolute; top: -3px; bottom: -3px; width: 2px; background: var(--warn); }
.pictures { display: flex; flex-wrap: wrap; gap: .8rem; align-items: flex-end; margin: .6rem 0; } figure { margin: 0;
  font-size: .8rem; } figure img { display: block; background: #000; max-width: 100%; }
.key { display: inline-block; width: .8em; height: .8em; border-radius: 2px; margin-right: .4em; }
code { font-family: ui-monospace, "DejaVu Sans Mono", monospace; font-size: .92em; overflow-wrap: anywhere; }
@media print { body { max-width: none; padding: 0; font-size: 11px; } figure, tr { break-inside: avoid; } }
"""


def write(case: CasePrediction, out: Path) -> list[Path]:
    """``report.html`` below ``out``."""
    body = [
        _head(case),
        _results(case),
        *(_task(case, name, task) for name, task in case.tasks.items() if not isinstance(task, Segmentation)),
        _images(case),
        _gate(case),
        _ingest(case),
        _origin(case),
    ]
    return [_save(out / NAME, f"Results for {case.source.name}", body)]


def write_index(path: Path, entries: Iterable[Entry], tasks: Mapping[str, AnyTask], *, bundle: str) -> Path:
    """``path`` over all ``entries``, also those without a result; links to the report among the outputs of each."""
    listed = list(entries)
    rows = [_entry_row(entry, tasks) for entry in listed]
    count = {status: sum(entry.status == status for entry in listed) for status in ("ok", "failed", "skipped")}
    numbers = ", ".join(f"{n} {status}" for status, n in count.items())
    facts = f"{len(listed)} inputs: {numbers}; {_made_by(bundle)}"
    head = f"<header><h1>Results</h1>{_banner()}<p class=soft>{facts}</p></header>"
    body = [head, _table(("input", "status", *map(escape, tasks), "remarks"), rows)]
    return _save(path, "Results", body)


def _save(path: Path, title: str, body: Iterable[str]) -> Path:
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(part for part in body if part)
        + "\n</body></html>\n"
    )
    return write_atomic(path, page.encode("utf-8", "backslashreplace"))  # a file name need not be UTF-8


def _banner() -> str:
    return f'<p class="banner">{NOTICE}</p>'


def _made_by(bundle: str) -> str:
    return f"bundle <code>{escape(bundle)}</code>, medmtl {__version__}"


def _head(case: CasePrediction) -> str:
    notes = {f"{note.code} {note.what}" for note in case.image.notes} if isinstance(case.image, Volume) else set()
    own = [text for text in case.warnings if text not in notes]  # these have a table of their own
    warned = "".join(f'<li class="warn">{escape(text)}</li>' for text in own)
    return (
        f"<header><h1>{escape(case.source.name)}</h1>{_banner()}<p class=soft>{_made_by(case.bundle)}</p>"
        f"{f'<ul>{warned}</ul>' if warned else ''}</header>"
    )


def _results(case: CasePrediction) -> str:
    rows: list[Row] = [[escape(name), (_answer(case.cells, name, task), "answer")] for name, task in case.tasks.items()]
    return f"<section><h2>Results</h2>{_table(('task', 'result'), rows)}</section>"


def _answer(cells: Mapping[str, Cell], name: str, task: AnyTask) -> str:
    """The result of a task in a few words, as HTML; a dash where there is none."""
    match task:
        case Segmentation():
            shares = [(label, cells.get(f"{name}.fraction.{label}", "")) for label in task.classes[1:]]
            return "<br>".join(f"{escape(label)}: {_percent(share)}" for label, share in shares if share != "") or "-"
        case Regression():
            value = cells.get(f"{name}.value", "")
            return f"{_number(value)} {escape(task.unit)}".strip()
        case Ordinal():
            return f"{escape(str(cells.get(f'{name}.level', '-')))} {escape(task.unit)}".strip()
        case ClassificationBase():
            return escape(str(cells.get(f"{name}.label", "-")))
    raise AssertionError(f"no answer of a task of kind {task.kind}")


def _task(case: CasePrediction, name: str, task: AnyTask) -> str:
    """The probabilities of a task, with the threshold that decided."""
    labels = task.levels if isinstance(task, Ordinal) else task.classes if isinstance(task, ClassificationBase) else ()
    known = [(label, case.cells[f"{name}.p.{label}"]) for label in labels if f"{name}.p.{label}" in case.cells]
    if not known:
        return ""
    decided = threshold_of(task)
    rows = []
    for label, chance in known:
        limit = decided[1] if decided and decided[0] == label else None
        rows.append([escape(label), _percent(chance), _bar(float(chance), limit)])
    expected = case.cells.get(f"{name}.expected", "")
    notes = []
    if decided:
        notes.append(f"{escape(decided[0])} from {_percent(decided[1])} on (the mark)")
    if expected != "":
        unit = task.unit if isinstance(task, Ordinal) else ""
        notes.append(f"expected level {_number(expected)} {escape(unit)}".strip())
    note = f"<p class=soft>{'; '.join(notes)}.</p>" if notes else ""
    table = _table(("class", "probability", ""), rows, numbers=(1,))
    return f"<section><h2>{escape(name)}</h2>{table}{note}</section>"


def _bar(chance: float, limit: float | None) -> str:
    mark = "" if limit is None else f'<i style="left:{_share(limit)}%"></i>'
    return f'<span class="bar"><b style="width:{_share(chance)}%"></b>{mark}</span>'


def _share(chance: float) -> str:
    return f"{100 * min(max(chance, 0.0), 1.0):.1f}"


def _images(case: CasePrediction) -> str:
    volume = isinstance(case.image, Volume)
    note = (
        "Radiological convention: the patient's right is on the left of the picture. Intensities from the 1st to the "
        "99th percentile. Darker where the network did not look."
        if volume and case.image.affine is not None  # type: ignore[union-attr]
        else "Darker where the network did not look."
    )
    if not case.dense:
        return f"<section><h2>Image</h2><div class=pictures>{shown(pictures(case, None))}</div></section>"
    parts = []
    for name, dense in case.dense.items():
        rows = [
            [
                f'<span class="key" style="background:rgb{colour(k)}"></span>{escape(label)}',
                f"{int((dense.labels == k).sum()):,}",
                _millilitres(volume_mm3(case, name, k)),
            ]
            for k, label in enumerate(dense.classes)
            if k
        ]
        slices = strip(case, dense)
        parts.append(
            f"<section><h2>{escape(name)}</h2><div class=pictures>{shown(pictures(case, dense))}</div>"
            + (f"<div class=pictures>{shown(slices)}</div>" if slices else "")
            + _table(("class", "voxels" if volume else "pixels", "volume"), rows, numbers=(1, 2))
            + f"<p class=soft>{note}</p></section>"
        )
    return "\n".join(parts)


def _millilitres(mm3: float | None) -> str:
    return "-" if mm3 is None else f"{mm3 / 1000:.3g} ml"


def _gate(case: CasePrediction) -> str:
    if not case.gate:
        return ""
    rows = [[f"<code>{escape(field)}</code>", escape(what)] for field, what in case.gate.items()]
    text = "This input differs from what the model was trained on; its results may be wrong without looking so."
    return (
        f'<section><h2>Unlike the training data</h2><p class="warn">{text}</p>{_table(("what", "how"), rows)}</section>'
    )


def _ingest(case: CasePrediction) -> str:
    if not isinstance(case.image, Volume) or not case.image.notes:
        return ""
    rows = [
        [f"<code>{escape(note.code)}</code>", escape(note.what), escape(REMEDY.get(note.code, ""))]
        for note in case.image.notes
    ]
    return f"<section><h2>How the input was read</h2>{_table(('code', 'what', 'what to do'), rows)}</section>"


def _origin(case: CasePrediction) -> str:
    image = case.image
    rows = [["kind", escape(case.source.kind)], ["files", f"{len(case.source.files):,}"]]
    if isinstance(image, Volume):
        rows.append(["voxels", " x ".join(map(str, image.array.shape))])
        if image.spacing:
            rows.append(["spacing", " x ".join(f"{step:.4g}" for step in image.spacing) + " mm"])
        rows.append(["place", "no place in the patient" if image.affine is None else "known"])
        rows.append(["unit", escape(image.units or "unknown")])
    else:
        rows.append(["pixels", " x ".join(map(str, image.shape[:0:-1]))])
    return f"<section><h2>Input</h2>{_table(('', ''), rows)}</section>"


def _entry_row(entry: Entry, tasks: Mapping[str, AnyTask]) -> Row:
    report = next((name for name in entry.outputs if PurePosixPath(name).name == NAME), None)
    name = escape(entry.id)
    link = f'<a href="{escape(quote(os.fsencode(report)))}">{name}</a>' if report else name
    remarks = [*entry.warnings] if entry.status == "ok" else [f"{entry.code} {entry.message}: {entry.remedy}"]
    if entry.cells.get("refer_to_reader") == "true":
        remarks.append(f"refer to a reader: {entry.cells.get('refer.reason', '')}")
    done = entry.status == "ok"
    answers = [_answer(entry.cells, task, kind) if done else "" for task, kind in tasks.items()]
    return [
        link,
        escape(entry.status),
        *answers,
        "<br>".join(f'<span class="warn">{escape(r)}</span>' for r in remarks),
    ]


def _number(value: Cell) -> str:
    return "-" if value == "" else f"{float(value):.4g}"


def _percent(value: Cell) -> str:
    return "-" if value == "" else f"{100 * float(value):.3g} %"


def _table(heads: Iterable[str], rows: Iterable[Row], *, numbers: Sequence[int] = ()) -> str:
    """``heads`` and cells are HTML; a cell may be (HTML, class)."""
    head = "".join(f"<th>{name}</th>" for name in heads)
    body = []
    for row in rows:
        cells = [(cell, "n" if n in numbers else "") if isinstance(cell, str) else cell for n, cell in enumerate(row)]
        body.append("<tr>" + "".join(f'<td class="{kind}">{text}</td>' for text, kind in cells) + "</tr>")
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>\n{chr(10).join(body)}</tbody></table></div>'
    )
