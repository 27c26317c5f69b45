"""The report: one file, offline, escaped, reproducible, with every number that it promises."""

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from medmtl.evaluation import plots
from medmtl.evaluation.report import write_report

HOSTILE = "<script>alert('x')</script>"


def _cell(value: float | None, *, reason: str = "") -> dict:
    if reason:
        return {"value": value, "low": None, "high": None, "n": 4, "reason": reason}
    assert value is not None
    return {"value": value, "low": value - 0.05, "high": value + 0.05, "n": 40}


EVALUATION = {
    "tasks": {
        "grade": {
            "kind": "classification", "headline": ["auroc"], "auxiliary": False, "n": 40, "n_missing": 7,
            "n_unpredicted": 2, "groups": 12,
            "overall": {"auroc": _cell(0.812), "brier": _cell(0.151)},
            "domains": {
                "A": {"auroc": _cell(0.9), "brier": _cell(0.1)},
                HOSTILE: {"auroc": _cell(0.7), "brier": _cell(0.3)},
                "tiny": {"auroc": _cell(None, reason="one class"), "brier": _cell(0.2, reason="n < 5: omitted")},
            },
            "worst_domain": {"auroc": {"domain": HOSTILE, **_cell(0.7)}},
            "control": {"constant": {"auroc": 0.5, "brier": None}},
        },
    },
    "bootstrap": {"resamples": 1000, "seed": 11, "level": 0.95, "clusters": "group", "minimum": 5},
}  # fmt: skip
TABLE = pd.DataFrame({
    "case_id": ["c1", "c2", HOSTILE, "c4"], "group": "g", "domain": ["A", "", HOSTILE, "A"], "task": "grade",
    "target": [0.0, 1.0, 1.0, np.nan], "prediction": [0.0, 0.0, 1.0, 0.0], "p.no": [0.9, 0.75, 0.4, 0.5],
    "p.yes": [0.1, 0.25, 0.6, 0.5], "target_label": ["no", "yes", "yes", None],
    "predicted_label": ["no", "no", "yes", "no"], "meta.name": "Miller^Jane",
})  # fmt: skip


@pytest.fixture
def page(tmp_path: Path) -> str:
    return _write(tmp_path / "report.html").read_text(encoding="utf-8")


def _write(path: Path) -> Path:
    figures = {
        "grade/confusion": plots.confusion(TABLE, classes=("no", "yes")),
        "grade/worst_errors": plots.worst_errors([(np.zeros((4, 4, 3), np.uint8), "c2")]),
        "learning": plots.loss_curves([{"epoch": 0, "name": "train/loss", "value": 1.0}]),
    }
    return write_report(
        path, title=f"Study {HOSTILE}", evaluation=EVALUATION, table=TABLE, figures=figures,
        provenance={"bundle": "b-12345", "manifest": "sha256:77"}, notes=["threshold from the validation split"],
    )  # fmt: skip


class _Balance(HTMLParser):
    """Open elements must be closed in order, and no element may load or run anything."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.external: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)
        assert tag not in ("script", "link", "iframe", "object")
        self.external += [
            value for key, value in attrs if key in ("src", "href") and value and value[:5] not in ("data:",)
        ]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_well_formed_and_refers_to_nothing_outside(page: str) -> None:
    parser = _Balance()
    parser.feed(page)
    assert parser.open == []
    assert parser.external
    assert all(value.startswith("#") and f'id="{value[1:]}"' in page for value in parser.external)
    assert "@import" not in page
    assert "url(" not in page
    assert "default-src 'none'" in page


def test_whatever_a_manifest_holds_is_escaped(page: str) -> None:
    assert HOSTILE not in page
    assert page.count("&lt;script&gt;") >= 4


def test_meta_columns_stay_out(page: str) -> None:
    assert "Miller" not in page


def test_the_promised_numbers_are_there(page: str) -> None:
    text = re.sub(r"<[^>]+>", " ", page)
    assert "Research use only" in text
    assert re.search(r"0\.812\s+\[0\.762, 0\.862\]", text)
    assert "40 cases of 12 groups; 7 without label; 2 labelled but without prediction" in text
    assert "b-12345" in text
    assert "one class" in text
    assert "n &lt; 5: omitted" in text
    assert "seed 11" in text
    assert "threshold from the validation split" in text
    assert re.search(r"grade\s+1 of 1\s+1 of 2\s+1 of 1\s+3 of 4", text.split("Labelled cases")[1])


def test_the_worst_and_the_best_domain_of_a_column_are_shaded_apart(page: str) -> None:
    best, worst = "rgba(0,114,178,0.38)", "rgba(230,159,0,0.38)"
    assert page.count(best) == page.count(worst) == 2
    row = page[page.index("<td>A</td>") :].split("</tr>")[0]
    assert row.count(best) == 2, "high AUROC and low Brier score are both good"


def test_the_largest_errors_are_listed_in_order(page: str) -> None:
    part = page.split("Largest errors</h3>")[1]
    assert part.index("<td>c2</td>") < part.index("&lt;script&gt;") < part.index("<td>c1</td>")
    assert "0.750" in part
    assert "<td>c4</td>" not in part, "a case without label has no error"


def test_figures_are_inside_and_each_stands_in_its_section(page: str) -> None:
    assert page.count('src="data:image/png;base64,') == 3
    assert page.index("Confusion matrix") < page.index('alt="Largest errors"') < page.index('alt="Learning curves"')


def test_equal_input_gives_equal_bytes(tmp_path: Path) -> None:
    assert _write(tmp_path / "a.html").read_bytes() == _write(tmp_path / "b.html").read_bytes()


def test_an_evaluation_without_a_single_case_is_still_a_report(tmp_path: Path) -> None:
    nothing = {"value": None, "low": None, "high": None, "n": 0, "reason": "no labelled case"}
    entry = {**EVALUATION["tasks"]["grade"], "n": 0, "overall": {"auroc": nothing}, "domains": {}, "worst_domain": {},
             "control": {"constant": {}}}  # fmt: skip
    path = write_report(
        tmp_path / "report.html", title="Empty", evaluation={**EVALUATION, "tasks": {"grade": entry}},
        table=TABLE.head(0), figures={}, provenance={},
    )  # fmt: skip
    assert "no labelled case" in path.read_text()
