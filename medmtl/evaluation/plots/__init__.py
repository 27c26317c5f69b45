"""The case table as figures. Pure functions to :class:`matplotlib.figure.Figure`; no display, no global state.

``rows`` are the rows of one task; those without label or prediction are left out. Where there is nothing to draw (no
case, no positive, only NaN) the figure says why. Colours are those of Okabe & Ito, which colour-blind readers tell
apart.
"""

from matplotlib.figure import Figure

from medmtl.evaluation.plots.agreement import agreement
from medmtl.evaluation.plots.canvas import BLUE, PALETTE, placeholder, render, save
from medmtl.evaluation.plots.cases import mask_distribution, worst_errors
from medmtl.evaluation.plots.classification import calibration, confusion, precision_recall, roc
from medmtl.evaluation.plots.intervals import comparison_figure, domain_bars
from medmtl.evaluation.plots.levels import level_errors
from medmtl.evaluation.plots.strata import Evidence, failure_gallery, strata_forest
from medmtl.evaluation.plots.training import gradient_cosine, loss_curves

__all__ = [
    "BLUE",
    "PALETTE",
    "Evidence",
    "Figure",
    "agreement",
    "calibration",
    "comparison_figure",
    "confusion",
    "domain_bars",
    "failure_gallery",
    "gradient_cosine",
    "level_errors",
    "loss_curves",
    "mask_distribution",
    "placeholder",
    "precision_recall",
    "render",
    "roc",
    "save",
    "strata_forest",
    "worst_errors",
]
