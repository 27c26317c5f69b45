"""The failure analysis as files: ``failures.csv``, forest plots, and a section of the report."""

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from medmtl.evaluation import plots
from medmtl.evaluation.failures import BETTER, WORSE, Failures
from medmtl.evaluation.html import html_table, metric_name, short_number
from medmtl.evaluation.plots import Figure
from medmtl.files import write_atomic

_SHOWN = 25  # strata in the report; failures.csv has all
_SHADE = {WORSE: "background: rgba(230,159,0,0.3)", BETTER: "background: rgba(0,114,178,0.15)"}


def write_failures(path: Path, failures: Failures) -> Path:
    """All strata as a table, those that are worse beyond chance first."""
    return write_atomic(path, failures.rows.to_csv(index=False, lineterminator="\n"))


def failure_figures(failures: Failures) -> dict[str, Figure]:
    """``failures/<task>``: the effects of one task."""
    return {
        f"failures/{task}": plots.strata_forest(rows, title=f"{task}: where errors are larger or smaller")
        for task, rows in failures.rows.groupby("task", sort=False)
    }


def failure_facts(failures: Failures) -> dict[str, Any]:
    """JSON-able: settings, skipped columns, and every stratum where the model is worse beyond chance."""
    flagged = [
        {key: (value if not isinstance(value, float) or np.isfinite(value) else None) for key, value in row.items()}
        for row in failures.flagged.to_dict("records")
    ]
    tested = int(failures.rows["p"].notna().sum())
    return {**failures.settings, "strata": len(failures.rows), "tested": tested, "skipped": dict(failures.skipped),
            "worse": flagged}  # fmt: skip


def failure_section(failures: Failures) -> str:
    """HTML: the strata by effect, what was left out, and how to read it."""
    s = failures.settings
    rows: list[list[str | tuple[str, str]]] = []
    for row in failures.rows.head(_SHOWN).to_dict("records"):
        reason = f"<small>{escape(str(row['reason']))}</small>" if row["reason"] else ""
        rows.append([
            (escape(f"{str(row['column']).removeprefix('meta.')}: {row['stratum']}"), _SHADE.get(row["verdict"], "")),
            escape(str(row["task"])), str(row["n"]), str(row["groups"]),
            f"{metric_name(row['metric'])} {_interval(row, 'value', '')}", short_number(row["rest"]),
            _interval(row, "difference", "difference_"), _interval(row, "effect", "effect_"), _p(row["p"]),
            _p(row["p_adjusted"]), reason or escape(str(row["verdict"])),
        ])  # fmt: skip
    numbers = ("cases", "groups", "metric", "rest", "difference", "effect", "p", "p, Holm")
    heads = ("stratum", "task", *numbers, "the model is")
    left_out = "".join(f"<li>{escape(name)}: {escape(why)}</li>" for name, why in failures.skipped.items())
    more = len(failures.rows) - len(rows)
    return (
        "<section id=failures><h2>Where it fails</h2><p class=soft>Every value of every meta column and every domain "
        "against all other cases: first those where the model is worse beyond chance, then by effect. Effect: "
        "difference of the cases' errors in standard deviations, above 0 where the model is worse; of a class, in "
        "excess of that class's mean error. p: score test by groups; Holm: adjusted for all strata and tasks. An "
        "association is no cause: strata that go together surface together. A stratum and the rest need "
        f"{s['minimum']} cases of {s['groups']} groups; rarer values are pooled. {s['resamples']} resamples of "
        "groups.</p>"
        f"{html_table(heads, rows, text=(1, 4, 10))}"
        f"{f'<p class=soft>{more} more in failures.csv.</p>' if more > 0 else ''}"
        f"{f'<p class=soft>Not looked at:</p><ul class=soft>{left_out}</ul>' if left_out else ''}</section>"
    )


def _interval(row: Mapping[Any, Any], key: str, prefix: str) -> str:
    """``0.51 [0.40, 0.62]``."""
    low, high = row[f"{prefix}low"], row[f"{prefix}high"]
    interval = f" <small>[{short_number(low)}, {short_number(high)}]</small>" if np.isfinite(low) else ""
    return f"{short_number(row[key])}{interval}"


def _p(value: float) -> str:
    return "-" if not np.isfinite(value) else "&lt; 0.001" if value < 0.001 else f"{value:.3f}"
