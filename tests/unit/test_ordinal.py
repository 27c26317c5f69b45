"""Ordered levels: thresholds that cannot cross, a loss of known size, the median, and a score that is none."""

import csv
import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from laws import TinyEncoder, cases, refuses, table, targets_of, truth, written
from pydantic import ValidationError
from rich.console import Console
from scipy.special import expit

from medmtl.bundle import ModelSpec, load_bundle, save_bundle
from medmtl.config import validate
from medmtl.data.case import Case
from medmtl.data.target import ClassTarget, LevelTarget
from medmtl.evaluation import plots
from medmtl.evaluation.case_error import error_size
from medmtl.evaluation.figures import galleries, task_figures
from medmtl.evaluation.summary import evaluate_table
from medmtl.inference.pipeline import Job, predict
from medmtl.inference.writers import Output
from medmtl.io.raster import write_png
from medmtl.models.head import CumulativeHead
from medmtl.prepared import prepare
from medmtl.study import Study
from medmtl.tasks.base import summary
from medmtl.tasks.ordinal import Ordinal

SWEDE = Ordinal(low=0, high=10)
GRADES = Ordinal(classes=("normal", "CIN1", "CIN2", "CIN3"))
SHARES = np.array([0.4, 0.1, 0.05, 0.05, 0.05, 0.1, 0.05, 0.1, 0.05, 0.03, 0.02])


def _labels(samples: int = 2000) -> np.ndarray:
    return np.random.default_rng(0).choice(11, samples, p=SHARES)


def test_thresholds_never_cross_whatever_the_parameters() -> None:
    torch.manual_seed(0)
    head = SWEDE.head(TinyEncoder())
    assert isinstance(head, CumulativeHead)
    pyramid = [torch.randn(16, 4, 4, 4), 30 * torch.randn(16, 8, 2, 2)]
    for _ in range(20):
        for parameter in head.parameters():
            torch.nn.init.normal_(parameter, std=8)
        output = head(pyramid)
        assert (output.diff(dim=1) <= 0).all()
        decoded = SWEDE.decode(output)
        assert (decoded >= 0).all()
        torch.testing.assert_close(decoded.sum(1), torch.ones(16))


def test_one_weight_vector_moves_all_thresholds_alike() -> None:
    """The odds ratio between two images is the same at each level: proportional odds."""
    torch.manual_seed(0)
    output = SWEDE.head(TinyEncoder())([torch.zeros(2, 4, 4, 4), torch.randn(2, 8, 2, 2)])
    torch.testing.assert_close(output[0] - output[1], (output[0, 0] - output[1, 0]).expand(10), atol=1e-5, rtol=1e-4)


def test_the_loss_is_the_papers_over_that_of_the_constant_predictor() -> None:
    labels = _labels()
    task = SWEDE.fit(labels).model_copy(update={"importance": tuple(np.linspace(0.5, 1.5, 10))})
    torch.manual_seed(0)
    output, target = torch.randn(7, 10), torch.tensor([0, 1, 4, 5, 9, 10, 10])
    weights = np.linspace(0.5, 1.5, 10)

    def cost(p: np.ndarray, level: int) -> float:
        above = (level > np.arange(10)).astype(float)
        return float((-weights * (above * np.log(p) + (1 - above) * np.log(1 - p))).mean())

    share = 1 - np.bincount(labels, minlength=11).cumsum()[:-1] / len(labels)
    constant = np.mean([cost(share, int(level)) for level in labels])
    expected = [cost(expit(z), int(level)) / constant for z, level in zip(output.double().numpy(), target, strict=True)]
    np.testing.assert_allclose(task.loss(output, target).numpy(), expected, rtol=1e-4)


def test_importance_by_counts_is_the_papers() -> None:
    """S_k labels lie above level k; lambda_k ~ sqrt(max(S_k, N - S_k)), here with mean 1."""
    task = Ordinal(low=0, high=3, importance="counts").fit([0] * 60 + [1] * 30 + [2] * 10)
    root = np.sqrt([60, 90, 100])
    assert task.importance == pytest.approx(tuple(root / root.mean()))
    assert task.prior == pytest.approx((0.6, 0.3, 0.1, 0.0))
    assert Ordinal(low=0, high=3, importance="counts").fit([]).importance == pytest.approx((1, 1, 1))
    unweighted = Ordinal(low=0, high=3).fit([0] * 60 + [1] * 30 + [2] * 10)
    output, target = torch.tensor([[2.0, 0.5, -4.0]]), torch.tensor([3])
    assert task.loss(output, target) > unweighted.loss(output, target), "the threshold that is missed weighs most"


def test_the_prediction_has_the_least_expected_absolute_error() -> None:
    rng = np.random.default_rng(0)
    levels = np.arange(11)
    for _ in range(50):
        p = rng.dirichlet(np.full(11, 0.4))
        costs = np.abs(levels[:, None] - levels).dot(p)
        row = SWEDE.row(torch.tensor(p), torch.tensor(3))
        assert costs[int(row["prediction"])] == pytest.approx(costs.min(), abs=1e-9)
        assert row["expected"] == pytest.approx(float((p * levels).sum()))
    tied = SWEDE.row(torch.tensor([0.5, 0.5] + [0.0] * 9), None)
    assert tied["prediction"] == 0, "the lower of two medians"


def test_a_score_that_does_not_start_at_0_keeps_its_numbers() -> None:
    task = Ordinal(low=-1, high=2)
    row = task.row(torch.tensor([0.0, 0.0, 0.3, 0.7]), torch.tensor(0))
    assert (row["target"], row["prediction"], row["expected"]) == (-1.0, 2.0, pytest.approx(1.7))
    assert {"p.-1", "p.0", "p.1", "p.2"} <= set(row)


def test_named_levels_are_counted_from_0_and_keep_their_names() -> None:
    row = GRADES.row(torch.tensor([0.1, 0.2, 0.4, 0.3]), torch.tensor(3))
    assert (row["target"], row["target_label"], row["prediction"], row["predicted_label"]) == (3.0, "CIN3", 2.0, "CIN2")


def test_a_diverged_model_predicts_nothing() -> None:
    row = SWEDE.row(SWEDE.decode(torch.full((1, 10), torch.nan))[0], torch.tensor(3))
    assert np.isnan(row["prediction"]) and np.isnan(row["expected"])


def test_one_observed_level_or_none_leaves_a_finite_loss_and_head() -> None:
    for labels in ([], [4, 4, 4]):
        task = SWEDE.fit(labels)
        output = task.head(TinyEncoder())([torch.zeros(2, 4, 4, 4), torch.zeros(2, 8, 2, 2)])
        assert torch.isfinite(task.loss(output, torch.tensor([0, 10]))).all()


def test_it_learns_an_order_that_the_image_holds() -> None:
    """Three levels by brightness: better than the constant in a few steps, and in order."""
    torch.manual_seed(0)
    target = torch.arange(60) % 5
    features = (target.float() - 2)[:, None, None, None] * torch.ones(60, 8, 2, 2) + 0.3 * torch.randn(60, 8, 2, 2)
    task = Ordinal(low=0, high=4).fit(target.tolist())
    head = task.head(TinyEncoder())
    optimizer = torch.optim.Adam(head.parameters(), 0.1)
    for _ in range(60):
        optimizer.zero_grad()
        loss = task.loss(head([features]), target).mean()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.3
    assert summary(task, table(task, head([features]).detach(), target))["quadratic_kappa"] > 0.95


@pytest.mark.parametrize(
    ("cell", "code", "says"),
    [("11", "E-TGT-RANGE", "0 to 10"), ("-1", "E-TGT-RANGE", "0 to 10"), ("3.5", "E-TGT-LEVEL", "levels 0 to 10"),
     ("five", "E-TGT-NUMBER", "not a number"), ("nan", "E-TGT-RANGE", "0 to 10")],
)  # fmt: skip
def test_a_score_that_is_none_is_named_with_its_row(cell: str, code: str, says: str) -> None:
    case = Case("c1", "g1", "i.png", row=17)
    message = refuses(code, lambda: SWEDE.reader().read(case, cell, Path()), says=says)
    assert "manifest row 17" in message


def test_whole_numbers_are_read_as_places_among_the_levels() -> None:
    reader = Ordinal(low=-1, high=2).reader()
    assert isinstance(reader, LevelTarget)
    found = [reader.read(Case("c", "g", "i"), cell, Path()) for cell in ("-1", "2", "0.0")]
    assert [int(value) for value in found] == [0, 3, 1]
    assert all(value.dtype == reader.placeholder(()).dtype == torch.int64 for value in found)
    assert isinstance(GRADES.reader(), ClassTarget)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"low": 0},
        {"low": 0, "high": 1},
        {"low": 0, "high": 10, "classes": ("a", "b", "c")},
        {"classes": ("a", "b")},
        {"classes": ("a", "b", "a")},
        {"low": 0, "high": 3, "importance": (1.0, 1.0)},
        {"low": 0.5, "high": 3},
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict) -> None:
    with pytest.raises(ValidationError):
        Ordinal(**settings)


def test_a_study_fits_it_on_training_labels_and_refuses_a_single_level(tmp_path: Path) -> None:
    found = [
        Case(c.case_id, c.group, c.image, "", ("train", "val", "test")[int(c.group[1:]) % 3], {"swede": str(i % 4)})
        for i, c in enumerate(cases())
    ]
    written(tmp_path, found)
    tree = {
        "name": "s",
        "data": {"manifest": str(tmp_path / "manifest.csv")},
        "tasks": {"swede": {"kind": "ordinal", "low": 0, "high": 10}},
    }
    fitted = prepare(validate(Study, tree, where="test")).spec.tasks["swede"]
    assert isinstance(fitted, Ordinal) and fitted.prior is not None
    assert sum(fitted.prior[:4]) == pytest.approx(1)
    written(tmp_path, [Case(c.case_id, c.group, c.image, "", c.split, {"swede": "7"}) for c in found])
    refuses("E-CFG-CLASS", lambda: prepare(validate(Study, tree, where="test")), says="level '7'")


def _table() -> pd.DataFrame:
    target = targets_of(SWEDE, 40)
    torch.manual_seed(0)
    noisy = (truth(SWEDE, target, 2.0) + torch.randn(40, 10)).sort(1, descending=True).values
    rows = table(SWEDE, noisy, target).assign(group=[f"g{i // 2}" for i in range(40)], domain="A", task="swede")
    return rows


def test_plots_and_galleries_show_levels() -> None:
    rows = _table()
    result = evaluate_table(rows, {"swede": SWEDE}, resamples=100)
    figures = task_figures(rows, {"swede": SWEDE}, result)
    assert {"swede/confusion", "swede/level_errors", "swede/domains_quadratic_kappa"} <= set(figures)
    ticks = [text.get_text() for text in figures["swede/confusion"].axes[0].get_yticklabels()]
    assert ticks[0].startswith("0") and ticks[-1].startswith("10")
    bars = figures["swede/level_errors"].axes[0].patches
    target = rows["target"].to_numpy(int)
    expected = [np.abs(rows["prediction"] - rows["target"])[target == k].mean() for k in np.unique(target)]
    assert [bar.get_height() for bar in bars] == pytest.approx(expected)
    np.testing.assert_allclose(error_size(rows, SWEDE), np.abs(rows["expected"] - rows["target"]))
    gallery = galleries(rows, {"swede": SWEDE}, lambda case: np.zeros((4, 4, 3), np.uint8), 3)["swede/worst_errors"]
    assert "expected" in gallery.axes[0].get_title()
    assert plots.level_errors(rows.head(0), levels=SWEDE.levels)


def test_a_bundle_keeps_it_and_predict_writes_its_columns(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tasks = {"swede": {"kind": "ordinal", "low": 0, "high": 10, "prior": [float(p) for p in SHARES]},
             "cin": {"kind": "ordinal", "classes": list(GRADES.classes)},
             "cdr": {"kind": "ordinal", "classes": ["0", "0.5", "1", "2"], "prior": [0, 0, 0, 1]}}  # fmt: skip
    encoder = {"kind": "timm", "name": "test_efficientnet"}
    spec = ModelSpec.model_validate({"preprocess": {}, "encoder": encoder, "tasks": tasks})
    model = spec.build().eval()
    save_bundle(tmp_path / "bundle", spec, model, provenance={}, card="{bundle_id}")
    bundle = load_bundle(tmp_path / "bundle")
    image = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        for name, output in model(image).items():
            torch.testing.assert_close(bundle.model(image)[name], output)
    for i in range(2):
        write_png(tmp_path / f"in/{i}.png", (image[i] * 255).byte().permute(1, 2, 0).numpy())
    output = Output(formats=("json", "html"))
    job = Job(tmp_path / "bundle", tmp_path / "in", tmp_path / "out", device="cpu", output=output)
    predict(job, console=Console(file=io.StringIO()))
    with (tmp_path / "out/predictions.csv").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    for row in rows:
        shares = [float(row[f"swede.p.{k}"]) for k in range(11)]
        assert sum(shares) == pytest.approx(1, abs=1e-5)
        assert float(row["swede.expected"]) == pytest.approx(np.dot(shares, range(11)), abs=1e-4)
        assert row["swede.level"] == str(np.searchsorted(np.cumsum(shares), 0.5))
        assert row["cin.level"] in GRADES.classes
        assert "cin.expected" not in row  # words have no mean
        mean = np.dot([float(row[f"cdr.p.{name}"]) for name in ("0", "0.5", "1", "2")], (0, 0.5, 1, 2))
        assert float(row["cdr.expected"]) == pytest.approx(mean, abs=1e-4)
        assert row["cdr.level"] == "2" and 1.9 < mean <= 2  # the scale ends there; the mean place would be near 3
        found = next(tmp_path.glob(f"out/cases/{Path(row['image']).stem}*"))
        told = (found / "findings.json").read_text(encoding="utf-8")
        assert "Expected cdr" in told and f'"value": {row["cdr.expected"]}' in told and "Expected cin" not in told
        page = (found / "report.html").read_text(encoding="utf-8")
        assert f"expected level {mean:.4g}." in page and page.count("expected level") == 2


def test_levels_are_numbers_where_every_name_is_one() -> None:
    assert Ordinal(classes=("0", "0.5", "1", "2")).numbers == (0, 0.5, 1, 2)
    assert Ordinal(low=-1, high=1).numbers == (-1, 0, 1)
    for words in (("0", "I", "II"), ("nan", "0", "1"), ("0", "1", "inf")):
        task = Ordinal(classes=words)
        assert task.numbers is None and task.values == (0, 1, 2)
