"""A case table as a file."""

from pathlib import Path

import pandas as pd

from medmtl.errors import UserError


def read_cases(path: Path) -> pd.DataFrame:
    """A case table that was written as CSV; ids and labels stay text, an empty domain stays empty."""
    if not path.is_file():
        raise UserError("E-EVAL-CASES", "no such case table", "run `medmtl evaluate` first", where=str(path))
    names = pd.read_csv(path, nrows=0).columns
    missing = [name for name in ("task", "split", "case_id", "target") if name not in names]
    if missing:
        message, remedy = f"no column {', '.join(missing)}", "give a cases.csv that `medmtl evaluate` wrote"
        raise UserError("E-EVAL-CASES", message, remedy, where=str(path))
    text = {"case_id", "group", "domain", "split", "task", *(name for name in names if name.startswith("meta."))}
    text |= {name for name in names if name.endswith("_label")}
    return pd.read_csv(path, dtype=dict.fromkeys(text, str), keep_default_na=True, float_precision="round_trip").fillna(
        {"domain": "", "split": ""}
    )
