"""The report as one HTML file that opens anywhere: no network, no script, the same bytes for the same study."""

import base64
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from medmtl.io.reasons import REMEDY

_MOST_PICTURES, _MOST_ROWS = 300, 2000
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_STYLE = """
:root { --ink: #111827; --soft: #6b7280; --line: #e5e7eb; --blue: #0072b2; }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; color: var(--ink);
  max-width: 1200px; margin: 0 auto; padding: 2rem 1.25rem 4rem; background: #fff; }
h1 { font-size: 1.7rem; margin: 0 0 .25rem; } h2 { font-size: 1.25rem; margin: 2.5rem 0 .5rem;
  border-bottom: 2px solid var(--blue); padding-bottom: .2rem; }
.banner { background: #fff4e5; border-left: 4px solid #d55e00; padding: .5rem .9rem; margin: .8rem 0;
  font-weight: 600; }
.counts { display: flex; flex-wrap: wrap; gap: 1rem; } .counts div { border: 1px solid var(--line); border-radius: 6px;
  padding: .4rem 1rem; } .counts b { display: block; font-size: 1.5rem; font-variant-numeric: tabular-nums; }
.soft { color: var(--soft); } .scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem; margin: .3rem 0 .8rem; min-width: 40%; }
th, td { padding: .32rem .5rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th { color: var(--soft); font-weight: 600; } td.n { text-align: right; font-variant-numeric: tabular-nums; }
code { font-family: ui-monospace, "DejaVu Sans Mono", monospace; font-size: .92em; overflow-wrap: anywhere; }
td:first-child code, td:nth-child(2) code { white-space: nowrap; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 1rem; }
figure { margin: 0; font-size: .78rem; } figure span { display: flex; align-items: center; justify-content: center;
  background: #000; height: 124px; } figcaption { overflow-wrap: anywhere; color: var(--soft); }
@media print { body { max-width: none; padding: 0; font-size: 11px; } figure, tr { break-inside: avoid; } }
"""


def page(tree: Mapping[str, Any], out: Path) -> str:
    """The page of a report's tree; pictures come from ``thumbnails/`` of the study."""
    sections = [
        _header(tree),
        _refused(tree),
        _codes(tree["codes"]),
        _domains(tree["cases"]),
        _ignored(tree["ignored"]),
        _pictures(tree["cases"], out),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Ingest report</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(section for section in sections if section)
        + "\n</body></html>\n"
    )


def _header(tree: Mapping[str, Any]) -> str:
    counts = "".join(f"<div><b>{n:,}</b>{name}</div>" for name, n in tree["counts"].items())
    made = tree["volumes"]
    volumes = f"{made['ok']:,} made, {made['failed']:,} refused one by one, {made['skipped']:,} not tried"
    remarks = "".join(f"<li>{escape(text)}</li>" for text in tree["warnings"])
    dry = "<p class=banner>A dry run: nothing but this report was written.</p>" if tree["settings"]["dry_run"] else ""
    return (
        "<header><h1>Ingest report</h1>"
        '<p class="banner">Research use only. Not a medical device; not for diagnosis or treatment.</p>'
        f"{dry}<p class=soft>Files of the source, each counted once</p><div class=counts>{counts}</div>"
        f"<p>Volumes and pictures: {volumes}; {tree['groups']:,} groups.</p>"
        f"{f'<ul>{remarks}</ul>' if remarks else ''}</header>"
    )


def _refused(tree: Mapping[str, Any]) -> str:
    """What to do comes first; files that were refused for one reason in one way share a row."""
    alike: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for row in tree["files"]:
        if row["status"] == "refused":
            alike[row["code"], row["remedy"], row["what"]].append(row["file"])
    if not alike:
        return "<section><h2>Refused</h2><p>Nothing was refused.</p></section>"
    body = []
    for (code, remedy, what), files in sorted(alike.items())[:_MOST_ROWS]:
        more = f" and {len(files) - 3} more" if len(files) > 3 else ""
        names = ", ".join(f"<code>{escape(name)}</code>" for name in files[:3])
        body.append([escape(remedy), f"<code>{escape(code)}</code>", escape(what), str(len(files)), names + more])
    note = (
        "" if tree["settings"]["keep_names"]
        else "<p class=soft>The paths of these files are in <code>files.csv</code> of the private folder.</p>"
    )  # fmt: skip
    heads = ("what to do", "code", "what was found", "files", "which")
    return f"<section><h2>Refused</h2>{note}{_table(heads, body, numbers=(3,))}</section>"


def _codes(codes: Mapping[str, int]) -> str:
    body = [[f"<code>{escape(code)}</code>", str(count), escape(REMEDY.get(code, ""))] for code, count in codes.items()]
    return f"<section><h2>Codes</h2>{_table(('code', 'files', 'what to do'), body, numbers=(1,))}</section>"


def _domains(cases: Sequence[Mapping[str, Any]]) -> str:
    by_domain: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for case in cases:
        by_domain[case["domain"]].append(case)
    body = []
    for domain, of_domain in sorted(by_domain.items()):
        groups = len({case["group"] for case in of_domain})
        spacings = Counter(_spacing(case) for case in of_domain if case.get("spacing_mm"))
        usual = ", ".join(f"{escape(text)} ({n})" for text, n in spacings.most_common(3))
        noted = sum(bool(case["notes"]) for case in of_domain)
        body.append([escape(domain or "unknown"), str(len(of_domain)), str(groups), str(noted), usual])
    heads = ("domain", "cases", "groups", "with notes", "most frequent spacings in mm")
    return f"<section><h2>Domains</h2>{_table(heads, body, numbers=(1, 2, 3))}</section>"


def _ignored(kinds: Mapping[str, int]) -> str:
    if not kinds:
        return ""
    body = [[escape(kind), str(count)] for kind, count in kinds.items()]
    return f"<section><h2>Ignored</h2>{_table(('kind', 'files'), body, numbers=(1,))}</section>"


def _pictures(cases: Sequence[Mapping[str, Any]], out: Path) -> str:
    """The middle slices of the cases, domain by domain in turn while there is room."""
    if not cases:
        return ""
    chosen = _spread(cases, _MOST_PICTURES)
    figures = []
    for case in chosen:
        path = out / "thumbnails" / f"{case['case']}.png"
        if not path.is_file():
            continue
        data = base64.b64encode(path.read_bytes()).decode()
        place = " ".join(part for part in (_spacing(case), case.get("orientation", "")) if part)
        figures.append(
            f'<figure><span><img alt="" src="data:image/png;base64,{data}"></span><figcaption>'
            f"{escape(case['case'])}<br>{' x '.join(map(str, case['shape']))}<br>{escape(place or 'no place')}"
            "</figcaption></figure>"
        )
    shown = f"{len(chosen)} of {len(cases)}, spread over the domains. " if len(chosen) < len(cases) else ""
    return (
        f"<section><h2>Cases</h2><p class=soft>{shown}Middle slices; spacing in mm, orientation of the axes.</p>"
        f"<div class=pictures>{''.join(figures)}</div></section>"
    )


def _spread(cases: Sequence[Mapping[str, Any]], most: int) -> list[Mapping[str, Any]]:
    by_domain: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for case in cases:
        by_domain[case["domain"]].append(case)
    chosen: list[Mapping[str, Any]] = []
    turn = 0
    while len(chosen) < min(most, len(cases)):
        chosen += [of_domain[turn] for _, of_domain in sorted(by_domain.items()) if turn < len(of_domain)]
        turn += 1
    return sorted(chosen[:most], key=lambda case: (case["domain"], case["case"]))


def _spacing(case: Mapping[str, Any]) -> str:
    return " x ".join(f"{step:.4g}" for step in case.get("spacing_mm", ()))


def _table(heads: Iterable[str], rows: Iterable[Sequence[str]], *, numbers: Sequence[int] = ()) -> str:
    head = "".join(f"<th>{name}</th>" for name in heads)
    body = "".join(
        "<tr>" + "".join(f"<td{' class=n' if n in numbers else ''}>{text}</td>" for n, text in enumerate(row)) + "</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
