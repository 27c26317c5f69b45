"""What trained runs are worth: one on its test cases, several as an ensemble, and one against another."""

from medmtl.evaluation.cases import read_cases
from medmtl.evaluation.overview import REPORT, aligned, format_result
from medmtl.results.comparison import compare_runs, trivial_controls
from medmtl.results.ensemble import average_tables, decide, evaluate_ensemble
from medmtl.results.folder import CASES, CONTROLS, FAILURES, RESULT, Evaluation, Material, evaluate_cases
from medmtl.results.run import evaluate_run, provenance_of, setting_of
from medmtl.results.settings import study_of

__all__ = [
    "CASES",
    "CONTROLS",
    "FAILURES",
    "REPORT",
    "RESULT",
    "Evaluation",
    "Material",
    "aligned",
    "average_tables",
    "compare_runs",
    "decide",
    "evaluate_cases",
    "evaluate_ensemble",
    "evaluate_run",
    "format_result",
    "provenance_of",
    "read_cases",
    "setting_of",
    "study_of",
    "trivial_controls",
]
