"""An evaluation as one HTML file that opens anywhere: no network, no script, the same bytes for the same input."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from medmtl.evaluation.html import anchor, html_table, plots_html
from medmtl.evaluation.overview import FEW
from medmtl.evaluation.plots import Figure
from medmtl.evaluation.report_overview import overview_section
from medmtl.evaluation.report_task import task_section
from medmtl.evaluation.summary import UNKNOWN
from medmtl.files import write_atomic

_STYLE = """
:root { --ink: #111827; --soft: #6b7280; --line: #e5e7eb; --blue: #0072b2; }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; color: var(--ink);
  max-width: 1200px; margin: 0 auto; padding: 2rem 1.25rem 4rem; background: #fff; }
h1 { font-size: 1.7rem; margin: 0 0 .25rem; } h2 { font-size: 1.25rem; margin: 2.5rem 0 .5rem;
  border-bottom: 2px solid var(--blue); padding-bottom: .2rem; } h3 { font-size: 1rem; margin: 1.5rem 0 .4rem; }
.banner { background: #fff4e5; border-left: 4px solid #d55e00; padding: .5rem .9rem; margin: .8rem 0; font-weight: 600;
} .soft { color: var(--soft); } a { color: var(--blue); text-decoration: none; } nav a { margin-right: 1rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; margin: .8rem 0; font-size: .88rem; }
dt { color: var(--soft); } dd { margin: 0; font-family: ui-monospace, "DejaVu Sans Mono", monospace;
  overflow-wrap: anywhere; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .88rem; margin: .3rem 0 .8rem; min-width:
40%; } th, td { padding: .32rem .5rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap;
  font-variant-numeric: tabular-nums; } th { color: var(--soft); font-weight: 600;
  vertical-align: bottom; white-space: normal; }
th:first-child, td:first-child, .text { text-align: left; } small { color: var(--soft); }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 430px), 1fr)); gap: 1.2rem;
  align-items: start; } figure { margin: 0; } .wide { grid-column: 1 / -1; }
figure img { max-width: min(100%, 540px); height: auto; } .wide img { max-width: 100%; }
footer { margin-top: 3rem; color: var(--soft); font-size: .85rem; }
summary { cursor: pointer; border-bottom: 2px solid var(--blue); margin: 1.6rem 0 .5rem; padding-bottom: .2rem; }
summary h2 { display: inline; border: 0; margin: 0 .8rem 0 0; } summary span { font-size: .9rem; }
.words { white-space: normal; min-width: 9rem; }
@media print { body { max-width: none; padding: 0; font-size: 11px; } nav { display: none; } h2 { break-after: avoid; }
  details::details-content { content-visibility: visible; block-size: auto; }
  figure, tr { break-inside: avoid; } .scroll { overflow: visible; } * { print-color-adjust: exact; } }
"""
# No script, no font, no request: even an image name that holds markup could not fetch anything.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def write_report(
    path: Path,
    *,
    title: str,
    evaluation: Mapping[str, Any],
    table: pd.DataFrame,
    figures: Mapping[str, Figure],
    provenance: Mapping[str, str],
    notes: Sequence[str] = (),
    sections: Sequence[str] = (),
) -> Path:
    """Write the report of one evaluation to ``path``.

    ``figures`` named ``<task>/<plot>`` stand with their task, ``<task>/worst_errors`` is its gallery, others come last.
    ``provenance`` is shown as it is: bundle, manifest, split and configuration by their hashes. Of ``table`` nothing
    but case ids, labels, predictions and scores is shown; ``meta.*`` columns are not. ``sections`` are HTML that other
    modules made, between the headline and the tasks (of meta columns, values that enough groups share).
    """
    tasks = evaluation["tasks"]
    general = {name: figure for name, figure in figures.items() if name.partition("/")[0] not in tasks}
    sections = [
        _header(title, tasks, provenance, notes),
        overview_section(evaluation),
        *sections,
        _labels(table, tasks),
        *(
            task_section(name, entry, table, _of_task(figures, name), is_open=len(tasks) <= FEW)
            for name, entry in tasks.items()
        ),
        f"<section><h2>Training, strata and comparison</h2>{plots_html(general)}</section>" if general else "",
        _footer(evaluation["bootstrap"]),
    ]
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(section for section in sections if section)
        + "\n</body></html>\n"
    )
    return write_atomic(path, page)


def _header(title: str, tasks: Mapping[str, Any], provenance: Mapping[str, str], notes: Sequence[str]) -> str:
    facts = "".join(f"<dt>{escape(key)}</dt><dd>{escape(str(value))}</dd>" for key, value in provenance.items())
    remarks = "".join(f"<li>{escape(note)}</li>" for note in notes)
    links = "".join(f'<a href="#{anchor(name)}">{escape(name)}</a>' for name in tasks)
    return (
        f"<header><h1>{escape(title)}</h1>"
        '<p class="banner">Research use only. Not a medical device; not for diagnosis or treatment.</p>'
        f"<dl>{facts}</dl>{f'<ul>{remarks}</ul>' if remarks else ''}<nav>{links}</nav></header>"
    )


def _labels(table: pd.DataFrame, tasks: Mapping[str, Any]) -> str:
    """Which task has labels where: labelled of all cases, for each domain."""
    rows = table[table["task"].isin(list(tasks))]
    if rows.empty:
        return ""
    domain = rows["domain"].fillna("").astype(str).replace("", UNKNOWN)
    parts = {str(name): part for name, part in rows.groupby(domain, sort=True)}
    body = [
        [escape(name), *(_labelled(part[part["task"] == name]) for part in parts.values()),
         _labelled(rows[rows["task"] == name])]
        for name in tasks
    ]  # fmt: skip
    heads = ("task", *(escape(name) for name in parts), "all")
    return f"<section><h2>Labels</h2><p class=soft>Labelled cases of all cases.</p>{html_table(heads, body)}</section>"


def _labelled(rows: pd.DataFrame) -> str:
    return f"{int(rows['target'].notna().sum())} of {len(rows)}" if len(rows) else "-"


def _of_task(figures: Mapping[str, Figure], task: str) -> dict[str, Figure]:
    return {name.partition("/")[2]: figure for name, figure in figures.items() if name.partition("/")[0] == task}


def _footer(bootstrap: Mapping[str, Any]) -> str:
    return (
        f"<footer>Intervals: {bootstrap['level']:.0%} percentile bootstrap, {bootstrap['resamples']} resamples of "
        f"whole groups (column {escape(str(bootstrap['clusters']))}), seed "
        f"{bootstrap['seed']}; omitted below "
        f"{bootstrap['minimum']} groups. ↑ higher is better, ↓ lower is better. Constant: the same metrics for one "
        "prediction fitted on the training labels. Controls were fitted on the training cases alone; a difference is "
        "model - control over the same resampled groups, not corrected for the number of comparisons: better or worse "
        "where its interval leaves out 0, otherwise neither is shown, which is no proof of equality. "
        "Shading compares the rows of a column.</footer>"
    )
