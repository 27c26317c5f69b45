"""The files of a source -> the cases of a study, before any pixel is read. Every file ends in exactly one place."""

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from medmtl import __version__
from medmtl.errors import UserError
from medmtl.ingest.job import Job
from medmtl.ingest.naming import Namer, check_domains, unique
from medmtl.ingest.rules import Rule, Subject, dicom_value
from medmtl.ingest.scanned import Scanned
from medmtl.ingest.segments import Drawing, drawings, each_once
from medmtl.ingest.walk import Found
from medmtl.io.deidentify.burned_in import risk
from medmtl.io.dicom.record import DRAWN
from medmtl.io.dicom.series import Stack, plan
from medmtl.io.reasons import REMEDY

Kind = Literal["dicom", "nifti", "raster"]
_DIRECTORY = "remove it, nothing is lost: files are found without a directory, and what one names is never opened"
_NO_GROUP, _FOLDERS = "W-ING-NO-GROUP", "W-ING-FOLDER-GROUPS"


@dataclass(frozen=True)
class PlannedCase:
    """One image of the study to be."""

    id: str
    identity: str  # what it is made of, in the source's own names: never written
    kind: Kind
    files: tuple[Found, ...]
    subject: Subject
    group: str
    domain: str
    signature: str = ""
    stack: Stack | None = None
    page: int | None = None  # of a TIFF with several
    masks: Mapping[str, str] = field(default_factory=dict)  # target -> path of the mask
    drawn: Mapping[str, Drawing] = field(default_factory=dict)  # target -> what the mask of a DICOM volume is made of
    refused: tuple[str, str] | None = None  # (code, what): not to be made at all


@dataclass(frozen=True)
class Fate:
    """What became of a file that belongs to no case."""

    path: str
    kind: str
    code: str
    what: str
    remedy: str

    @property
    def status(self) -> str:
        return "refused" if self.code.startswith("E-") else "ignored"


@dataclass(frozen=True)
class CasePlan:
    cases: tuple[PlannedCase, ...]  # sorted by id
    fates: tuple[Fate, ...]
    warnings: tuple[str, ...]


def plan_cases(scanned: Iterable[Scanned], job: Job, namer: Namer) -> CasePlan:
    """Sort files into cases and fates; the result does not depend on their order."""
    files = sorted(scanned, key=lambda item: item.found)
    dicom = [item for item in files if item.header is not None]
    images = {item.found.path: item for item in files if item.kind in ("nifti", "raster") and not item.code}
    fates = [
        Fate(item.found.path, item.kind, item.code, item.what, item.remedy or REMEDY.get(item.code, ""))
        for item in files
        if item.code
    ]
    fates = _without_pairs(fates, images)
    drafts, refused = _volumes(dicom, job, namer)
    others, ungrouped, guessed = _images(images, job, namer)
    names = unique({draft.identity: draft.id for draft in (*drafts, *others)}, namer)
    settings = _settings(job, namer)
    named = [replace(draft, id=names[draft.identity]) for draft in (*drafts, *others)]
    cases = [replace(case, signature=_signature(case, settings, job.mask_values)) for case in named]
    if job.domain:
        check_domains([(case.domain, case.subject.header) for case in cases if not job.keep_names], "--domain")
    warnings = []
    if ungrouped:
        warnings.append(f"{_NO_GROUP} {ungrouped} images stand in no folder of a patient: each is its own group")
    if guessed:
        folders = len({case.group for case in others if namer.guessed(case.files[0].path)})
        warnings.append(f"{_FOLDERS} the groups of {guessed} images are their first folders, {folders} of them")
    return CasePlan(tuple(sorted(cases, key=lambda case: case.id)), (*fates, *refused), tuple(warnings))


def _volumes(dicom: Sequence[Scanned], job: Job, namer: Namer) -> tuple[list[PlannedCase], list[Fate]]:
    """DICOM files as volumes; ids may still collide, signatures follow."""
    found = {item.header.path: item.found for item in dicom if item.header is not None}
    planned = plan((item.header for item in dicom if item.header is not None), job.policy)
    drafts = []
    for stack in planned.volumes:
        files = tuple(sorted(found[header.path] for header in stack.headers))
        header = stack.first
        subject = Subject(files[0].path, header)
        group = namer.patient(header)
        drafts.append(
            PlannedCase(
                id=namer.volume_id(header, stack.key, group),
                identity=f"{header.series_uid}\0{stack.key}",
                kind="dicom",
                files=files,
                subject=subject,
                group=group,
                domain=namer.domain(subject),
                stack=stack,
                refused=None if job.allow_burned_in else _burned_in(stack),
            )
        )
    drafts, undrawn = _with_drawings(drafts, dicom, namer) if job.segments else (drafts, [])
    if job.one_patient:
        drafts = _one_patient(drafts, Rule(job.one_patient, "--one-patient"))
    fates = []
    for refusal in planned.refused:
        error = refusal.error
        fates += [
            Fate(found[header.path].path, "dicom", error.code, error.what, error.remedy) for header in refusal.headers
        ]
    for ignored in planned.ignored:
        if ignored.header.fault and ignored.header.fault[0] == "E-SEC-PATH":  # a directory that names other folders
            code, what = ignored.header.fault
            fates.append(Fate(found[ignored.header.path].path, "dicom directory", code, what, _DIRECTORY))
            continue
        code = "I-DCM-DUPLICATE" if ignored.kind == "duplicate" else "I-DCM-KIND"
        kind = "directory" if ignored.kind == "DICOMDIR" else ignored.kind  # no name of a file: see sniff
        what = "a second copy of an image" if kind == "duplicate" else f"DICOM, but no image: {kind}"
        fates.append(Fate(found[ignored.header.path].path, f"dicom {kind}", code, what, REMEDY[code]))
    used = {file.path for draft in drafts for file in draft.files} | {fate.path for fate in undrawn}
    return drafts, [*undrawn, *(fate for fate in fates if fate.path not in used)]


def _with_drawings(
    drafts: Sequence[PlannedCase], dicom: Sequence[Scanned], namer: Namer
) -> tuple[list[PlannedCase], list[Fate]]:
    """The volumes with the masks that segmentations and structure sets draw on them, and those that draw none."""
    objects = [(item.header, item.found) for item in dicom if item.header is not None and item.header.kind in DRAWN]
    files = {header.path: found for header, found in objects}
    once, copies, several = each_once([header for header, _ in objects])
    headers = {files[header.path].path: header for header in once}
    found, refused = drawings(headers.items(), [draft.stack for draft in drafts if draft.stack], keep=namer.keep)
    by_path = {file.path: file for file in files.values()}
    changed = []
    for draft, drawn in zip(drafts, found, strict=True):
        mine = [by_path[path] for path in dict.fromkeys(drawing.path for drawing in drawn.values())]
        changed.append(replace(draft, drawn=drawn, files=(*draft.files, *mine)))
    fates = [
        Fate(path, f"dicom {headers[path].kind}", code, what, REMEDY[code]) for path, (code, what) in refused.items()
    ]
    for same in several:
        error = same.error
        fates += [
            Fate(files[one.path].path, f"dicom {one.kind}", error.code, error.what, error.remedy)
            for one in same.headers
        ]
    what = "a second copy of what is drawn"
    fates += [
        Fate(files[copy.path].path, "dicom duplicate", "I-DCM-DUPLICATE", what, REMEDY["I-DCM-DUPLICATE"])
        for copy in copies
    ]
    return changed, fates


def _one_patient(drafts: Sequence[PlannedCase], rule: Rule) -> list[PlannedCase]:
    """The volumes, refused where ``rule`` says of files of two patients that they belong to one."""
    places = [
        {value for file in draft.files if (value := rule.value(Subject(file.path, draft.subject.header)))}
        for draft in drafts
    ]
    if drafts and not any(places):
        raise UserError(
            "E-ING-RULE", f"{rule.text!r} says nothing of any DICOM volume, so nothing would be checked",
            'write what every file of a patient has in common, as "{folder:1}"', where="--one-patient",
        )  # fmt: skip
    patients: dict[str, set[str]] = defaultdict(set)
    for draft, mine in zip(drafts, places, strict=True):
        header = draft.subject.header
        if header is not None and header.patient_id.strip(" \0"):
            for place in mine:
                patients[place].add(draft.group)
    checked = []
    for draft, mine in zip(drafts, places, strict=True):
        count = max((len(patients[place]) for place in mine), default=0)
        what = f"images of {count} patients lie where {rule.text} says that there is one"
        checked.append(replace(draft, refused=("E-ING-PATIENTS", what)) if count > 1 else draft)
    return checked


def _images(images: Mapping[str, Scanned], job: Job, namer: Namer) -> tuple[list[PlannedCase], int, int]:
    """NIfTI files and rasters as cases, masks with theirs; how many have no group but themselves, or a guessed one."""
    masks = {path: _masks(path, images, job.masks) for path in images}
    taken = {mask for of_image in masks.values() for mask in of_image.values()}
    drafts, ungrouped, guessed = [], 0, 0
    for path, item in images.items():
        if path in taken:
            continue
        group, found = namer.group(path)
        ungrouped += not found
        guessed += namer.guessed(path)
        subject = Subject(path)
        of_image = masks[path]
        files = (item.found, *(images[mask].found for mask in of_image.values()))
        for page in range(item.pages) if item.pages > 1 else (None,):
            drafts.append(
                PlannedCase(
                    id=namer.image_id(path, group, page),
                    identity=path if page is None else f"{path}\0{page}",
                    kind="nifti" if item.kind == "nifti" else "raster",
                    files=files,
                    subject=subject,
                    group=group,
                    domain=namer.domain(subject),
                    page=page,
                    masks=of_image,
                )
            )
    return drafts, ungrouped, guessed


def _masks(path: str, images: Mapping[str, Scanned], rules: Mapping[str, str]) -> dict[str, str]:
    """The masks of an image that exist, by target: each rule rewrites the image's path to the mask's."""
    found = {}
    for target, rule in rules.items():
        pattern, _, replacement = rule.partition("->")
        try:
            mask, count = re.subn(pattern.strip(), replacement.strip(), path, count=1)
        except re.error as error:
            raise UserError(
                "E-ING-RULE", f"{rule!r}: {error}", r"write --mask 'name=images/(.+)\.nii\.gz -> labels/\1.nii.gz'",
                where="--mask",
            ) from error  # fmt: skip
        if count and mask != path and mask in images:
            found[target] = mask
    return found


def _without_pairs(fates: Sequence[Fate], images: Mapping[str, Scanned]) -> list[Fate]:
    """The ``.img`` half of a NIfTI pair is no file that is left aside."""
    halves = {path[:-4] + ".img" for path, item in images.items() if item.kind == "nifti" and path.endswith(".hdr")}
    return [
        replace(fate, code="I-FILE-OTHER", kind=".img", what="the voxels of the .hdr file beside it", remedy="nothing")
        if fate.path in halves
        else fate
        for fate in fates
    ]


def _settings(job: Job, namer: Namer) -> str:
    """Everything but the files that an image depends on."""
    return json.dumps(
        [
            __version__,
            repr(job.policy),
            job.keep_names,
            job.fill_nan,
            job.fourth_axis,
            job.uncompressed,
            namer.pseudonyms.fingerprint(),
        ]
    )


def _signature(case: PlannedCase, settings: str, values: Mapping[str, tuple[int, ...]]) -> str:
    """A digest of the files as they are, of how they are put together, and of the settings."""
    files = [(file.path, file.size, file.mtime_ns) for file in case.files]
    stack = case.stack
    made_of = None if stack is None else (stack.key, stack.shape, repr(stack.affine), repr(stack.regrid), stack.units)
    tree = [
        case.id,
        settings,
        files,
        repr(made_of),
        case.page,
        dict(case.masks),
        repr(case.drawn),
        case.refused,
        {target: values.get(target) for target in case.masks},
    ]
    return hashlib.sha256(json.dumps(tree).encode()).hexdigest()[:32]


def _burned_in(stack: Stack) -> tuple[str, str] | None:
    """Why an image is quarantined: somebody should look at it before it leaves the house."""
    header = stack.first
    annotation = dicom_value(header, "BurnedInAnnotation")
    note = risk(
        modality=header.modality,
        sop_class_uid=header.sop_class_uid,
        image_type=header.image_type,
        burned_in_annotation=annotation,
    )
    return (note.code, note.what) if note else None
