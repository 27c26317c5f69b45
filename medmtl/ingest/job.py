"""What to ingest, where to, by which rules; and how a job ended."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from medmtl.errors import UserError
from medmtl.io.dicom.series import Policy

MOST_JOBS = 64
FourthAxis = Literal["time", "channel", "refuse"]


@dataclass(frozen=True)
class LabelRule:
    """Which column of a table is matched with what of a case, and which columns become targets."""

    table: Path  # CSV or XLSX, the first row its header
    key: str  # column that holds the key
    match: str  # template of the key of a case: "{AccessionNumber}", "{PatientID}/{StudyDate}", "{stem}"
    targets: tuple[str, ...] = ()  # none: every column but the key


@dataclass(frozen=True)
class Job:
    """What to ingest. Policy, names, burned-in text, NaN and masks decide what the images become."""

    source: Path
    out: Path
    private: Path | None = None  # None: ``<out>.private``
    key: Path | None = None  # None: ``key.json`` in the private folder, made by the first job
    policy: Policy = field(default_factory=Policy)
    keep_names: bool = False  # no de-identification: patient ids, file names and dates appear in the study
    allow_burned_in: bool = False  # accept images that may show a name in their pixels
    fill_nan: bool = False  # replace NaN and infinity by the lowest value, if they are at most 0.1 % of the voxels
    domain: str = ""  # template of the domain; empty: manufacturer and model
    group: str = ""  # template, or regular expression with (?P<group>...), of the group of NIfTI files and rasters
    one_patient: str = ""  # template of what belongs to one patient, as "{folder:1}"; empty: nothing is checked
    labels: LabelRule | None = None
    masks: Mapping[str, str] = field(default_factory=dict)  # target -> regular expression of its files
    mask_values: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # target -> labels; without it: any
    segments: bool = False  # segmentations and structure sets become masks of the volumes that they were drawn on
    fourth_axis: FourthAxis = "time"  # of NIfTI files
    uncompressed: bool = False  # volumes as .nii, not .nii.gz
    jobs: int = 0  # processes; 0: as many as this process may use
    timeout_s: float = 900.0  # of one volume
    dry_run: bool = False
    overwrite: bool = False  # drop the study of another source, key or naming in ``out``
    fail_fast: bool = False
    max_failures: str = ""  # "20" volumes or "5%" of them; stop when more than this have failed

    def __post_init__(self) -> None:
        if not 0 <= self.jobs <= MOST_JOBS:
            raise _wrong("jobs", str(self.jobs), f"give 1 to {MOST_JOBS}, or 0 for one per core")
        if self.max_failures and not re.fullmatch(r"\d+|\d+(\.\d+)?%", self.max_failures):
            raise _wrong("max_failures", self.max_failures, "give a number of volumes, as 20, or a share, as 5%")
        if unknown := sorted(set(self.mask_values) - set(self.masks)):
            raise _wrong("mask_values", ", ".join(unknown), "name masks that a rule of --mask finds")
        if self.timeout_s <= 0:
            raise _wrong("timeout_s", f"{self.timeout_s:g}", "give the seconds that one volume may take")

    @property
    def private_folder(self) -> Path:
        return self.private or self.out.parent / f"{self.out.name}.private"

    @property
    def processes(self) -> int:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return self.jobs or min(MOST_JOBS, cores)

    def failures_allowed(self, volumes: int) -> float:
        """More failed volumes than this stop the job."""
        if self.fail_fast:
            return 0
        if self.max_failures.endswith("%"):
            return float(self.max_failures[:-1]) / 100 * volumes
        return float(self.max_failures or "inf")


def _wrong(what: str, value: str, remedy: str) -> UserError:
    return UserError("E-ING-JOB", f"{what} is {value}", remedy, where="ingest")


@dataclass(frozen=True)
class Summary:
    """How a job ended. ``exit_code``: 0 nothing was refused, 3 something was, 4 nothing is usable."""

    files: Mapping[str, int]  # accepted, repaired, refused, ignored -> files
    volumes: Mapping[str, int]  # ok, failed, skipped -> volumes (and rasters)
    read: int  # files that were opened in this run; the others were known from an earlier one
    resumed: int  # of the volumes that are ok: taken from an earlier run
    codes: Mapping[str, int]  # reason code -> files
    ignored_kinds: Mapping[str, int]
    domains: Mapping[str, int]  # domain -> cases
    exit_code: int
    paths: Mapping[str, Path]  # manifest, report, table, page, ledger; private
    seconds: Mapping[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
