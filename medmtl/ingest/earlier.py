"""What earlier jobs left below a source folder: the masks of one job are not the patients of the next.

Of a prediction that is everything; of an ingested study, what was made beside its images. A study that lies below a
source which is ingested is left aside whole: its images would come in a second time, as other patients. One that is
the source itself was meant.
"""

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

from medmtl.ingest.walk import Aside, Found, Walked
from medmtl.outfolder import LEDGER

KIND = "results of an earlier job"
STUDY, LOCK = ".study.json", ".lock"  # beside a ledger: of an ingested study alone; of any job
_SHARED = re.compile(r"\.cases-\d+\.jsonl")  # of one process, where several shared a prediction
_LINE_BYTES = 2**22  # of a ledger's first line at most: a row of the table, and the names of a case's files
_Maker = Literal["prediction", "study", "begun"]
_KEYS: dict[_Maker, set[str]] = {  # of a line, which the other one does not have
    "prediction": {"id", "status", "bundle", "settings"},
    "study": {"id", "status", "signature", "facts"},
}
_NO_IMAGES = (LEDGER, "masks/", "thumbnails/")  # of a study; its ledger is empty before the first volume
_RESULTS = (
    LEDGER,
    "masks/",
    "overlays/",
    "cases/",
)  # where a ledger is empty, which may be anybody's


def left_aside(root: Path, walked: Walked, *, whole_studies: bool) -> Walked:
    """The walk with every file of earlier results as an :class:`Aside` of :data:`KIND`."""
    results = folders(root, walked.files, whole_studies=whole_studies)
    below = tuple(name for name in results if not name or name.endswith("/"))

    def made(path: str) -> bool:
        return path.startswith(below) or path in results

    met = [*(found.path for found in walked.files), *(item.path for item in walked.asides)]
    return Walked(
        tuple(found for found in walked.files if not made(found.path)),
        (
            *(item for item in walked.asides if not made(item.path)),
            *(aside(path) for path in met if made(path)),
        ),
    )


def folders(root: Path, files: Iterable[Found], *, whole_studies: bool = False) -> tuple[str, ...]:
    """Files, and folders (with a slash), of earlier results; ``""``: all. ``whole_studies``: ingested studies, too."""
    ledgers = [found.path for found in files if _is_ledger(found.path.rpartition("/")[2])]
    return tuple(dict.fromkeys(start for path in ledgers for start in _starts(root, path, whole_studies)))


def aside(path: str) -> Aside:
    """A file of earlier results."""
    return Aside(path, KIND, "I-FILE-OTHER", KIND)


def told(count: int) -> str:
    """What a user should hear of who expects more images; empty where no file is of earlier results."""
    return f"{count} files are {KIND} and were left aside" if count else ""


def _is_ledger(name: str) -> bool:
    return name == LEDGER or _SHARED.fullmatch(name) is not None


def _starts(root: Path, ledger: str, whole_studies: bool) -> Iterator[str]:
    folder = ledger[: ledger.rfind("/") + 1]
    maker = _maker(root / ledger)
    if maker == "begun":
        yield from (folder + name for name in _RESULTS)
    elif maker == "prediction" or (maker == "study" and whole_studies and folder):
        yield folder
    elif maker == "study":
        yield from (folder + name for name in _NO_IMAGES)


def _maker(path: Path) -> _Maker | None:
    """Who wrote a ledger, by its first line; of a job killed before it, by what lies beside."""
    try:
        with path.open("rb") as stream:
            line = stream.readline(_LINE_BYTES)
        if not line.endswith(b"\n"):
            maker: _Maker = "begun" if not line and path.name == LEDGER else "prediction"
            maker = "study" if path.with_name(STUDY).exists() else maker
            return maker if path.with_name(LOCK).exists() else None
        tree = json.loads(line)
    except (OSError, ValueError, RecursionError):
        return None
    return next((maker for maker, keys in _KEYS.items() if isinstance(tree, dict) and tree.keys() >= keys), None)
