"""Every figure is made, holds the numbers it claims, and has an answer to one case, no positive and nothing but NaN."""

import io
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from medmtl.evaluation import plots

CLASSES = ("no", "yes")


def _grades(n: int = 60, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    label = np.arange(n) % 3 == 0
    score = np.clip(0.3 * label + 0.7 * rng.random(n), 0, 1)
    return pd.DataFrame({
        "case_id": [f"c{i:03d}" for i in range(n)], "group": "g", "domain": "A", "task": "grade",
        "target": label.astype(float), "prediction": (score >= 0.5).astype(float), "p.no": 1 - score, "p.yes": score,
        "target_label": np.where(label, "yes", "no"), "predicted_label": np.where(score >= 0.5, "yes", "no"),
        "dice.lesion": rng.random(n), "hd95.lesion": 10 * rng.random(n),
    })  # fmt: skip


def _texts(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in figure.findobj(Text))


TABLE_FIGURES: dict[str, Callable[[pd.DataFrame], Figure]] = {
    "roc": lambda rows: plots.roc(rows, classes=CLASSES[1:]),
    "precision_recall": lambda rows: plots.precision_recall(rows, classes=CLASSES[1:]),
    "calibration": lambda rows: plots.calibration(rows, positive="yes"),
    "calibration_top_label": lambda rows: plots.calibration(rows, positive=None),
    "confusion": lambda rows: plots.confusion(rows, classes=CLASSES),
    "agreement": lambda rows: plots.agreement(rows, unit="points"),
    "dice": plots.mask_distribution,
    "hd95": lambda rows: plots.mask_distribution(rows, metric="hd95"),
}
NAN = _grades(8).assign(**dict.fromkeys(("p.no", "p.yes", "dice.lesion", "hd95.lesion", "prediction"), np.nan))
TABLES = {
    "some": _grades(),
    "one": _grades(1),
    "none": _grades(0),
    "unlabelled": _grades(8).assign(target=np.nan),
    "nan": NAN,
    "no positive": _grades()[lambda rows: rows["target"] == 0],
}


@pytest.fixture(autouse=True)
def _no_warning() -> Iterator[None]:
    """A warning of numpy, scikit-learn or matplotlib means that an edge was not thought of."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.parametrize("name", TABLE_FIGURES)
@pytest.mark.parametrize("table", TABLES)
def test_every_figure_of_every_table_can_be_drawn(name: str, table: str) -> None:
    figure = TABLE_FIGURES[name](TABLES[table])
    figure.canvas.draw()
    if table in ("none", "unlabelled", "nan"):
        assert "Nothing to draw" in _texts(figure)
    if table == "some":
        assert "Nothing to draw" not in _texts(figure)
        assert "n = 60" in _texts(figure)


@pytest.mark.parametrize("name", ["roc", "precision_recall"])
def test_a_curve_without_positives_says_so(name: str) -> None:
    assert "one class only: no (n = 40)" in _texts(TABLE_FIGURES[name](TABLES["no positive"]))


def test_curves_carry_their_area_and_start_where_they_must() -> None:
    figure = plots.roc(_grades(), classes=CLASSES[1:])
    curve = figure.axes[0].lines[1]
    area = np.trapezoid(curve.get_ydata(), curve.get_xdata())
    assert f"AUROC {area:.3f} (20 of 60)" in _texts(figure)


def test_bland_altman_draws_bias_and_limits() -> None:
    rows = _grades(40).assign(target=np.arange(40.0), prediction=np.arange(40.0) + np.tile([1.0, 3.0], 20))
    right = plots.agreement(rows).axes[1]
    heights = sorted(line.get_ydata()[0] for line in right.lines)
    spread = 1.96 * np.std(np.tile([1.0, 3.0], 20), ddof=1)
    assert heights == pytest.approx(sorted([0.0, 2.0, 2.0 - spread, 2.0 + spread]))


def test_five_hundred_classes_still_give_figures() -> None:
    classes = [f"k{i}" for i in range(500)]
    rows = _grades(50).assign(target_label=[f"k{i % 20}" for i in range(50)], target=np.arange(50.0) % 20)
    scores = pd.DataFrame(np.random.default_rng(0).random((50, 500)), columns=[f"p.{name}" for name in classes])
    rows = pd.concat([rows, scores], axis=1)
    plots.confusion(rows, classes=classes).canvas.draw()
    figure = plots.roc(rows, classes=classes)
    assert len(figure.axes[0].lines) == len(plots.PALETTE) + 1


def _evaluation(domains: dict[str, tuple[float | None, float | None]]) -> dict:
    cells = {name: {"auroc": {"value": v, "low": low, "high": v, "n": 9}} for name, (v, low) in domains.items()}
    overall = {"auroc": {"value": 0.7, "low": 0.6, "high": 0.8, "n": 30}}
    return {"tasks": {"t": {"n": 30, "domains": cells, "overall": overall, "control": {"constant": {"auroc": 0.5}}}}}


def test_domain_bars_stand_worst_first_and_leave_out_what_is_undefined() -> None:
    found = _evaluation({"A": (0.9, 0.8), "B": (0.6, None), "C": (None, None)})
    figure = plots.domain_bars(found, "t", "auroc")
    figure.canvas.draw()
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["B  (n = 9)", "A  (n = 9)"]
    assert "constant 0.500" in _texts(figure)
    assert "no domain has a value" in _texts(plots.domain_bars(_evaluation({"C": (None, None)}), "t", "auroc"))
    many = _evaluation({f"site {i}": (0.5 + i / 1000, 0.4) for i in range(100)})
    assert "40 worst of 100 domains" in _texts(plots.domain_bars(many, "t", "auroc"))


def test_loss_curves_put_train_and_val_of_a_quantity_in_one_panel() -> None:
    history = [
        {"epoch": epoch, "name": f"{split}/{name}", "value": 1.0 / (1 + epoch)}
        for epoch in range(3) for split in ("train", "val") for name in ("loss", "grade")
    ]  # fmt: skip
    figure = plots.loss_curves([*history, {"epoch": 3, "name": "val/loss", "value": float("nan")}])
    assert [axes.get_title() for axes in figure.axes] == ["loss", "grade"]
    assert [line.get_label() for line in figure.axes[0].lines] == ["train", "val"]
    assert len(figure.axes[0].lines[1].get_xdata()) == 3
    plots.loss_curves(pd.DataFrame(history[:1])).canvas.draw()
    assert "no epoch" in _texts(plots.loss_curves([]))
    assert "undefined" in _texts(plots.loss_curves([{"epoch": 0, "name": "a", "value": float("nan")}]))


def test_gradient_cosine_shows_gaps_and_conflicts() -> None:
    figure = plots.gradient_cosine(np.array([[1.0, -0.5], [-0.5, np.nan]]), ["a", "b"])
    figure.canvas.draw()
    assert "-0.50" in _texts(figure)
    assert "no gradient" in _texts(plots.gradient_cosine(np.full((2, 2), np.nan), ["a", "b"]))


def test_gallery_and_its_absence() -> None:
    image = np.zeros((8, 8, 3), dtype=np.uint8)
    figure = plots.worst_errors([(image, "c001")] * 7)
    figure.canvas.draw()
    assert len(figure.axes) == 7
    assert "Nothing to draw" in _texts(plots.worst_errors([]))


def test_comparison_colours_the_verdict_and_says_which_way_is_better() -> None:
    cell = {"difference": -1.0, "low": -2.0, "high": -0.5, "n": 9, "verdict": "better"}
    task = {"headline": ["mae"], "n": 9, "overall": {"mae": cell}, "domains": {"A": {"mae": {**cell, "low": None}}}}
    figure = plots.comparison_figure({"tasks": {"age": task}}, labels=("old", "new"))
    figure.canvas.draw()
    assert "right of 0 old is better" in _texts(figure)
    assert figure.axes[0].lines[1].get_color() == plots.BLUE
    assert "share no labelled case" in _texts(plots.comparison_figure({"tasks": {"age": {**task, "n": 0}}}))


def test_saving_gives_whole_files_with_equal_bytes(tmp_path: Path) -> None:
    data = pd.DataFrame({"x": [1, 2]})
    paths = plots.save(plots.roc(_grades(), classes=("yes",)), tmp_path / "one", "roc", data)
    again = plots.save(plots.roc(_grades(), classes=("yes",)), tmp_path / "two", "roc", data)
    assert [path.name for path in paths] == ["roc.png", "roc.svg", "roc.csv"]
    assert paths[0].read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert "</svg>" in paths[1].read_text()
    assert paths[2].read_text() == "x\n1\n2\n"
    assert [a.read_bytes() for a in paths] == [b.read_bytes() for b in again]
    assert len(list((tmp_path / "one").iterdir())) == 3


@pytest.mark.parametrize("name", TABLE_FIGURES)
def test_a_rendering_is_what_matplotlib_s_savefig_draws_whatever_was_rendered_before(name: str) -> None:
    first, second, third = (TABLE_FIGURES[name](TABLES["some"]) for _ in range(3))
    stream = io.BytesIO()
    third.savefig(stream, format="png", dpi=120)
    oracle = np.asarray(Image.open(stream).convert("RGB"), float)
    png, svg = plots.render(first, "png"), plots.render(first, "svg")
    assert (plots.render(second, "svg"), plots.render(second, "png")) == (svg, png)
    found = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), float)
    assert found.shape == oracle.shape
    assert np.abs(found - oracle).mean() < 0.5


def test_a_gallery_is_pixels_alone(tmp_path: Path) -> None:
    image = np.full((8, 8, 3), 200, np.uint8)
    evidence = plots.Evidence("c", image, None, None, np.zeros((8, 8)))
    for figure in (plots.worst_errors([(image, "c")]), plots.failure_gallery([evidence], title="t")):
        assert [path.name for path in plots.save(figure, tmp_path, "g")] == ["g.png"]
        assert not any(axes.axison for axes in figure.axes)


def test_names_with_dollar_signs_are_not_mathematics() -> None:
    found = _evaluation({r"site $\frac$ 1": (0.9, 0.8)})
    assert plots.render(plots.domain_bars(found, "t", "auroc"), "png")
