"""What to predict, and how a job ended."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from medmtl.errors import UserError
from medmtl.inference.shards import Shard
from medmtl.inference.writers import Output
from medmtl.io.dicom.series import Policy
from medmtl.models.views import VIEWS, ViewSet

Gate = Literal["off", "warn", "refuse"]
Names = Literal["path", "hash"]


@dataclass(frozen=True)
class Job:
    """What to predict, with what, where to.

    Results depend on the bundles, ``views``, ``overlays``, ``output``, ``gate``, ``names``, ``policy`` and ``fill_nan``
    alone.
    """

    bundle: Path
    source: Path
    out: Path  # may lie inside ``source``: it is never read as input
    also: tuple[Path, ...] = ()  # more bundles (folds, seeds): together they are one model, their mean
    batch_size: int = 32
    device: str = "auto"  # auto, cpu, cuda, cuda:1
    views: ViewSet | None = None  # None: those of the bundle
    overlays: bool = True
    output: Output = field(default_factory=lambda: Output(formats=("nifti",)))  # beside tables, masks and overlays
    gate: Gate = "warn"  # what happens to an image unlike those of the training
    policy: Policy = field(default_factory=Policy)  # what may be repaired in DICOM series; the largest volume
    fill_nan: bool = False  # replace up to 0.1 % of NaN voxels by the lowest value
    names: Names = "path"  # what pictures and NIfTI files are called in the output; the command has hash
    workers: int = 1  # threads that read, preprocess and write; as many processes read small pictures
    max_ram: int | None = None  # bytes that images and results at hand may take; None: half of the machine's
    overwrite: bool = False  # drop the results of an earlier job in ``out``
    max_failures: int | None = None  # stop when more images than this have failed; the rest is skipped
    shard: Shard = field(default_factory=Shard)  # of several processes with one output folder

    def __post_init__(self) -> None:
        least_of = {"batch_size": 1, "workers": 1, "max_failures": 0, "max_ram": 2**20}
        for name, least in least_of.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError("E-PRE-JOB", f"{name} is {value}", f"give {least} or more", where="predict")
        if self.views is not None and self.views not in VIEWS:
            raise UserError("E-PRE-JOB", f"unknown views {self.views!r}", f"choose {', '.join(VIEWS)}", where="predict")
        if self.names not in get_args(Names):
            raise UserError("E-PRE-JOB", f"unknown names {self.names!r}", "choose path or hash", where="predict")
        if self.gate not in get_args(Gate):
            choices = ", ".join(get_args(Gate))
            raise UserError("E-PRE-JOB", f"unknown gate {self.gate!r}", f"choose {choices}", where="predict")
        self._check_output()

    def _check_output(self) -> None:
        """Refuse a setting of a format that is not written: nothing would read it."""
        output = self.output
        coded = [name for name in output.formats if name != "html"]
        for setting, given, needs in (
            ("probabilities", output.probabilities != "none", "nifti" in output.formats),
            ("segmentation", output.segmentation != "binary", "dicom-seg" in output.formats),
            ("coding", bool(output.coding), bool(coded)),
        ):
            if given and not needs:
                formats = {"probabilities": "nifti", "segmentation": "dicom-seg"}.get(setting, "a format with codes")
                raise UserError(
                    "E-PRE-JOB", f"{setting} is set, but not {formats}", f"write {formats} too", where="predict"
                )


@dataclass(frozen=True)
class Summary:
    """How a job ended. ``exit_code``: 0 all images have a result, 3 some have none, 4 none has one (or no image)."""

    total: int
    ok: int
    failed: int
    skipped: int  # not tried, because of ``max_failures``
    resumed: int  # of ``ok``: taken from an earlier run
    referred: int  # of all: that a reader should look at
    ignored: int  # files that are no images
    ignored_kinds: Mapping[str, int]
    exit_code: int
    paths: Mapping[str, Path]  # ledger, predictions, errors, summary, manifest
