"""The training mean and median beside every error: on the same cases, of each side its own."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from laws import TASKS

from medmtl.bundle import ModelSpec
from medmtl.config import to_yaml
from medmtl.data.preprocess import Preprocess
from medmtl.evaluation.compare import compare_repeats, format_comparison
from medmtl.evaluation.trivial import paired, trivial_errors
from medmtl.files import write_atomic
from medmtl.models.encoder import TimmConfig
from medmtl.results import compare_runs
from medmtl.tasks.regression import Regression

N = 40
SCORE = Regression(low=0, high=100)
TARGET = np.random.default_rng(0).uniform(20, 80, N)


def said(value: np.ndarray | float, **more: object) -> pd.DataFrame:
    """A case table of one prediction of each case; the last case has no label."""
    table = pd.DataFrame({
        "case_id": [f"c{i:02d}" for i in range(N)], "group": [f"g{i // 2}" for i in range(N)],
        "domain": ["A", "B"] * (N // 2), "split": "test", "task": "score", "target": TARGET, "prediction": value,
    })  # fmt: skip
    table.loc[N - 1, "target"] = np.nan
    return table.assign(**more)


def constants(mean: float, median: float) -> dict[str, pd.DataFrame]:
    return {"training_mean": said(mean), "training_median": said(median), "ridge": said(TARGET)}


def error(value: float, inside: slice | np.ndarray = slice(0, N - 1)) -> float:
    return float(np.abs(TARGET[inside] - value).mean())


def test_both_are_judged_on_the_cases_of_the_model_alone() -> None:
    model = said(TARGET + 5)
    model.loc[3, "prediction"] = np.nan
    shuffled = {name: table.sample(frac=1, random_state=1) for name, table in constants(50, 30).items()}
    found = trivial_errors(model, SCORE, shuffled)
    kept = np.setdiff1d(np.arange(N - 1), [3])
    assert {name: values["mae"] for name, values in found.items()} == pytest.approx(
        {"training_mean": error(50, kept), "training_median": error(30, kept)}
    )
    assert found["training_mean"]["rmse"] == pytest.approx(np.sqrt(((TARGET[kept] - 50) ** 2).mean()))


def test_a_control_that_lacks_a_case_or_a_task_says_nothing() -> None:
    model = said(TARGET)
    assert set(trivial_errors(model, SCORE, {**constants(50, 30), "training_mean": said(50).iloc[1:]})) == {
        "training_median"
    }
    assert trivial_errors(model.assign(task="other"), SCORE, constants(50, 30)) == {}
    assert trivial_errors(model.assign(target=np.nan), SCORE, constants(50, 30)) == {}
    assert trivial_errors(model, TASKS["binary"], {}) == {}


def test_sides_are_means_of_their_runs_and_unknown_where_one_run_is() -> None:
    one, two = ({"training_mean": {"mae": value}} for value in (2.0, 4.0))
    assert paired(([one, two], [two])) == {"training_mean": {"mae": {"a": 3.0, "b": 4.0}}}
    assert paired(([one, {}], [two])) == {"training_mean": {"mae": {"a": None, "b": 4.0}}}
    assert paired(([{}], [{}])) == {}


def test_a_comparison_has_them_overall_and_by_domain_below_the_error() -> None:
    a, b = [(said(TARGET + 5), {"score": SCORE})], [(said(TARGET + 3).iloc[4:], {"score": SCORE})]
    known = [constants(50, 30)], [constants(60, 35)]
    comparison = compare_repeats(a, b, resamples=100, controls=known)
    shared = np.arange(4, N - 1)
    trivial = comparison["tasks"]["score"]["trivial"]
    assert trivial["overall"]["training_mean"]["mae"] == pytest.approx({"a": error(50, shared), "b": error(60, shared)})
    inside = shared[shared % 2 == 1]
    assert trivial["domains"]["B"]["training_median"]["mae"] == pytest.approx(
        {"a": error(30, inside), "b": error(35, inside)}
    )
    lines = [line for line in format_comparison(comparison).splitlines() if line.startswith("score  all")]
    assert sorted(line.split()[3] for line in lines) == ["MAE", "MAE", "MAE", "Pearson", "R²"]
    assert "MAE of the training mean" in lines[1] and lines[1].split()[-2:] == [
        f"{error(value, shared):.3f}" for value in (50, 60)
    ]
    assert "MAE of the training median" in lines[2] and f"{error(35, shared):.3f}" in lines[2]
    assert "trivial" not in compare_repeats(a, b, resamples=100)["tasks"]["score"]


def _evaluation(folder: Path, table: pd.DataFrame, controls: dict[str, pd.DataFrame]) -> Path:
    spec = ModelSpec(preprocess=Preprocess(window=(8, 8)), encoder=TimmConfig(), tasks={"score": SCORE})
    write_atomic(folder / "tasks.yaml", to_yaml(spec))
    write_atomic(folder / "cases.csv", table.to_csv(index=False))
    if controls:
        rows = [rows.assign(control=name) for name, rows in controls.items()]
        rows += [table.assign(split="val", prediction=0.0, control=name) for name in controls]
        write_atomic(folder / "controls.csv", pd.concat(rows).to_csv(index=False))
    return folder


def test_compared_folders_have_them_in_their_files(tmp_path: Path) -> None:
    model = said(TARGET + 5, **{"meta.site": ["x", "x", "y", "y"] * (N // 4)})
    a = _evaluation(tmp_path / "a", model, constants(50, 30))
    b = _evaluation(tmp_path / "b" / "evaluation", model, constants(60, 35)).parent
    comparison, text = compare_runs([a], [b], tmp_path / "out", resamples=100, where={"site": "y"})
    inside = np.array([i for i in range(N - 1) if i % 4 > 1])
    both = {"a": error(50, inside), "b": error(60, inside)}
    assert comparison["tasks"]["score"]["trivial"]["overall"]["training_mean"]["mae"] == pytest.approx(both)
    written = (tmp_path / "out" / "comparison.txt").read_text()
    assert written == text and f"{both['b']:.3f}" in written
    bare = _evaluation(tmp_path / "c", model, {})
    assert "of the training mean" in compare_runs([a], [bare], None, resamples=100)[1]
    assert "of the training mean" not in compare_runs([bare], [bare], None, resamples=100)[1]
