"""What a reader must know of each metric."""

from dataclasses import dataclass, replace
from typing import Any

from medmtl.errors import UserError
from medmtl.metrics.classes import ECE_BINS


@dataclass(frozen=True)
class Metric:
    """What a reader must know of a metric: its name in a table, which way is better, the perfect value, the unit.

    A ``signed`` one is better the closer it is to 0, from either side.
    """

    label: str
    higher_is_better: bool
    best: float | None
    unit: str
    description: str
    signed: bool = False

    @property
    def arrow(self) -> str:
        return "→ 0" if self.signed else "↑" if self.higher_is_better else "↓"


METRICS: dict[str, Metric] = {
    "balanced_accuracy": Metric("Balanced accuracy", True, 1.0, "", "mean recall of the classes; two: 0.5 is chance"),
    "auroc": Metric("AUROC", True, 1.0, "", "probability that a positive scores above a negative; macro one-vs-rest"),
    "auprc": Metric("AUPRC", True, 1.0, "", "average precision; chance is the share of positives"),
    "sensitivity": Metric("Sensitivity", True, 1.0, "", "share of the positives that are called positive"),
    "specificity": Metric("Specificity", True, 1.0, "", "share of the negatives that are called negative"),
    "f1": Metric("F1", True, 1.0, "", "harmonic mean of precision and sensitivity"),
    "macro_f1": Metric("Macro F1", True, 1.0, "", "mean F1 of the classes that occur or are predicted"),
    "accuracy": Metric("Accuracy", True, 1.0, "", "share of the cases that are right"),
    "cohen_kappa": Metric("Cohen's kappa", True, 1.0, "", "agreement beyond chance"),
    "quadratic_kappa": Metric("Quadratic kappa", True, 1.0, "", "agreement beyond chance, by squared distance"),
    "accuracy_within_1": Metric("Accuracy ± 1", True, 1.0, "", "share of the cases at most one level off"),
    "brier": Metric("Brier score", False, 0.0, "", "mean squared error of the probabilities, summed if K > 2"),
    "ece": Metric("ECE", False, 0.0, "", f"expected calibration error, {ECE_BINS} equal-width bins"),
    "mae": Metric("MAE", False, 0.0, "target's unit", "mean absolute error"),
    "rmse": Metric("RMSE", False, 0.0, "target's unit", "root of the mean squared error"),
    "r2": Metric("R²", True, 1.0, "", "share of the target's variance explained; 0 predicts its mean"),
    "pearson": Metric("Pearson r", True, 1.0, "", "linear correlation"),
    "spearman": Metric("Spearman ρ", True, 1.0, "", "rank correlation"),
    "icc_agreement": Metric("ICC(2,1)", True, 1.0, "", "agreement with the target as a second judge; a shift counts"),
    "icc_consistency": Metric("ICC(3,1)", True, 1.0, "", "the same, forgiving a shift"),
    "bias": Metric("Bias", False, 0.0, "target's unit", "mean of prediction - target; above 0: overrated", signed=True),
    "loa_low": Metric("Limits of agreement, low", False, 0.0, "target's unit",
                      "bias - 1.96 standard deviations of the differences", signed=True),
    "loa_high": Metric("Limits of agreement, high", False, 0.0, "target's unit",
                       "bias + 1.96 standard deviations of the differences", signed=True),
    "dice": Metric("Dice", True, 1.0, "", "overlap 2|A∩B|/(|A|+|B|), mean over cases; both empty 1, one empty 0"),
    "iou": Metric("IoU", True, 1.0, "", "overlap |A∩B|/|A∪B|, mean over cases; both empty 1, one empty 0"),
    "hd95": Metric("HD95", False, 0.0, "mm, or px without spacing",
                   "95th percentile of surface distances, mean over cases; both empty 0, one empty left out"),
    "ged": Metric("GED²", False, 0.0, "", "generalised energy distance of the predicted set of masks to the drawn"),
    "agreement": Metric("Agreement", True, 1.0, "", "Dice of the prediction with the annotators, mean over them"),
    "agreement_iou": Metric("IoU with", True, 1.0, "", "IoU of the prediction with one annotator's masks"),
    "agreement_hd95": Metric("HD95 to", False, 0.0, "mm, or px without spacing",
                             "HD95 of the prediction to one annotator's masks; one empty left out"),
    "human_agreement": Metric("Human agreement", True, 1.0, "", "Dice of the annotators with each other"),
}  # fmt: skip


def describe(name: str) -> Metric:
    """The entry of ``name`` in ``METRICS``; ``dice.nucleus`` is the entry of ``dice`` for the class ``nucleus``."""
    family, _, part = name.partition(".")
    if family not in METRICS:
        raise UserError("E-EVAL-METRIC", f"no metric is called {name!r}", f"use one of {', '.join(METRICS)}")
    metric = METRICS[family]
    return replace(metric, label=f"{metric.label} {part}") if part else metric


def is_better(name: str, a: Any, b: Any) -> Any:
    """Whether value ``a`` of the metric ``name`` is strictly better than ``b`` (numbers or arrays)."""
    metric = describe(name)
    if metric.signed:
        return abs(a) < abs(b)
    return a > b if metric.higher_is_better else a < b
