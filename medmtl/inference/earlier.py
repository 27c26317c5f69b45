"""Results of earlier predictions below a source folder: the masks of one job are not the patients of the next."""

import json
from collections.abc import Iterable
from pathlib import Path

from medmtl.ingest.walk import Aside, Found
from medmtl.outfolder import LEDGER

KIND = "results of an earlier job"
STUDY, LOCK = ".study.json", ".lock"  # beside a ledger: of an ingested study alone; of any job
_LINE_BYTES = 2**22  # of a ledger's first line at most: a row of the table, and the names of a case's files
_OURS = {"id", "status", "bundle", "settings"}  # an ingested study's ledger has neither bundle nor settings


def folders(root: Path, files: Iterable[Found]) -> tuple[str, ...]:
    """The folders that hold the ledger of a prediction, as what paths in them begin with; ``""`` is ``root`` itself."""
    ledgers = [found.path for found in files if found.path == LEDGER or found.path.endswith(f"/{LEDGER}")]
    return tuple(path.removesuffix(LEDGER) for path in ledgers if _is_prediction(root / path))


def aside(path: str) -> Aside:
    """A file in one of these folders."""
    return Aside(path, KIND, "I-PRE-RESULTS", KIND)


def _is_prediction(path: Path) -> bool:
    """Whether a ledger is a prediction's: by its first line; of a job killed before it, by what lies beside."""
    try:
        with path.open("rb") as stream:
            line = stream.readline(_LINE_BYTES)
        if not line.endswith(b"\n"):
            return path.with_name(LOCK).exists() and not path.with_name(STUDY).exists()
        tree = json.loads(line)
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(tree, dict) and tree.keys() >= _OURS
