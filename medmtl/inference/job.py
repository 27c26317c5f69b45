"""What to predict, and how a job ended."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from medmtl.errors import UserError
from medmtl.models.views import VIEWS, ViewSet


@dataclass(frozen=True)
class Job:
    """What to predict, with what, where to. Only ``views`` and ``overlays`` are settings that results depend on."""

    bundle: Path
    source: Path
    out: Path  # may lie inside ``source``: it is never read as input
    batch_size: int = 32
    device: str = "auto"  # auto, cpu, cuda, cuda:1
    views: ViewSet | None = None  # None: those of the bundle
    overlays: bool = True
    workers: int = 1  # threads that read, preprocess and write
    overwrite: bool = False  # drop the results of an earlier job in ``out``
    max_failures: int | None = None  # stop when more images than this have failed; the rest is skipped

    def __post_init__(self) -> None:
        least_of = {"batch_size": 1, "workers": 1, "max_failures": 0}
        for name, least in least_of.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError("E-PRE-JOB", f"{name} is {value}", f"give {least} or more", where="predict")
        if self.views is not None and self.views not in VIEWS:
            raise UserError("E-PRE-JOB", f"unknown views {self.views!r}", f"choose {', '.join(VIEWS)}", where="predict")


@dataclass(frozen=True)
class Summary:
    """How a job ended. ``exit_code``: 0 all images have a result, 3 some have none, 4 none has one (or no image)."""

    total: int
    ok: int
    failed: int
    skipped: int  # not tried, because of ``max_failures``
    resumed: int  # of ``ok``: taken from an earlier run
    ignored: int  # files that are no images
    ignored_kinds: Mapping[str, int]
    exit_code: int
    paths: Mapping[str, Path]  # ledger, predictions, errors, summary
