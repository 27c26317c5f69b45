"""Plans the volumes of a set of DICOM headers: which frames form a volume, in which order, and where it lies.

A volume is not a SeriesInstanceUID: one series can hold a localizer, several echoes, two reconstructions. Frames are
grouped by series, frame of reference, matrix, colour, orientation and pixel size, sorted by position along the normal
(never by instance number or name), and separated where several share a position.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from medmtl.errors import UserError
from medmtl.files import sha256
from medmtl.io.dicom.assemble import assemble, matrix_of, with_notes
from medmtl.io.dicom.geometry import axes_of
from medmtl.io.dicom.pictures import picture
from medmtl.io.dicom.pixelsize import Spacing, is_colour, is_cross_sectional, pixel_size
from medmtl.io.dicom.record import Header
from medmtl.io.dicom.stack import Ignored, Plan, Policy, Refused, Regrid, Slice, Stack
from medmtl.io.reasons import refusal
from medmtl.io.volume import Note

__all__ = ["Ignored", "Plan", "Policy", "Refused", "Regrid", "Slice", "Stack", "plan"]

_COSINE = 3e-4  # 0.08 mm at the far side of 256 mm: one orientation
_PIXEL = 1e-4  # relative difference of the pixel size: one matrix


def plan(headers: Iterable[Header], policy: Policy = Policy()) -> Plan:
    """Sort ``headers`` into volumes, refusals and files that are no images.

    The result does not depend on the order of ``headers``. Pixels are not read; only where two files carry the same
    SOP instance UID are their bytes compared.
    """
    everything = sorted(headers, key=lambda header: (header.series_uid, header.sop_instance_uid, str(header.path)))
    ignored = [Ignored(header, header.kind) for header in everything if not header.is_image]
    series: dict[tuple[str, str, str], list[Header]] = defaultdict(list)
    for header in everything:
        if header.is_image:
            series[header.patient_id, header.study_uid, header.series_uid].append(header)
    volumes: list[Stack] = []
    refused: list[Refused] = []
    mixed = _mixed_folders(everything)
    for members in series.values():
        found = _plan_series(members, policy)
        volumes.extend(with_notes(stack, *_mixed_note(stack, mixed)) for stack in found.volumes)
        refused.extend(found.refused)
        ignored.extend(found.ignored)
    return Plan(tuple(volumes), tuple(refused), tuple(ignored))


def _plan_series(members: list[Header], policy: Policy) -> Plan:
    unique, copies, refused = without_copies(members)
    refused.extend(Refused((header,), refusal(*header.fault)) for header in unique if header.fault)
    results: list[Stack | Refused] = []
    placed: list[tuple[Slice, Spacing]] = []
    for header in unique:
        if not header.fault:
            outcome = _place(header, alone=len(members) == 1, policy=policy)
            if isinstance(outcome, list):
                placed.extend(outcome)
            else:
                results.append(outcome)
    lost = [header for item in (*refused, *results) if isinstance(item, Refused) for header in item.headers]
    groups = _groups(placed, together=_scattered(unique))
    for group, spacing in groups:
        if problem := _astray(group, groups[0][0]) or _incomplete(group, lost, policy):
            results.append(problem)
            continue
        notes = (*_localizer_note(group, len(groups[0][0])), *_lost_note(group, lost))
        found = assemble(group, spacing, policy)
        results.extend(with_notes(item, *notes) if isinstance(item, Stack) else item for item in found)
    ends = () if lost else _ends_notes(unique)
    if _scattered(unique):
        ends = (*ends, Note("W-DCM-REFERENCE", "every file names another frame of reference; they are taken as one"))
    volumes = [
        _with_copies(with_notes(item, *_own_notes(item), *(ends if _is_volume(item) else ())), copies)
        for item in results
        if isinstance(item, Stack)
    ]
    refused.extend(item for item in results if isinstance(item, Refused))
    return Plan(tuple(volumes), _merged(refused), tuple(Ignored(copy, "duplicate") for copy, _ in copies))


def _place(header: Header, *, alone: bool, policy: Policy) -> list[tuple[Slice, Spacing]] | Stack | Refused:
    """The frames of a file with the size of their pixels; or the picture that it is; or why it is neither."""
    try:
        nowhere = [frame for frame in header.frames if frame.position is None or frame.orientation is None]
        if not nowhere:
            sized = [(Slice(header, frame), pixel_size(header, frame)[0]) for frame in header.frames]
            if all(spacing is not None for _, spacing in sized):
                return [(item, spacing) for item, spacing in sized if spacing]
        elif is_cross_sectional(header) and not (alone and len(header.frames) == 1 and not header.frames[0].broken):
            broken = next((frame.broken for frame in nowhere if frame.broken), ())
            what = (
                f"{' and '.join(broken)} of no finite numbers" if broken else "the image has no position or orientation"
            )
            raise refusal("E-DCM-GEOMETRY", what)
        return picture(header, policy)
    except UserError as error:
        return Refused((header,), error)


def _scattered(members: Sequence[Header]) -> bool:
    """Whether every file names a frame of reference of its own: a careless anonymiser's work, not many places."""
    references = {header.frame_of_reference_uid for header in members}
    return len(references) == len(members) > 2


def _groups(placed: Sequence[tuple[Slice, Spacing]], *, together: bool) -> list[tuple[list[Slice], Spacing]]:
    """Slices of one frame of reference, matrix, colour, orientation and pixel size, the largest group first."""
    groups: dict[tuple[object, ...], list[tuple[np.ndarray, list[Slice], Spacing]]] = defaultdict(list)
    seen: dict[tuple[object, ...], list[Slice]] = {}
    for item, spacing in placed:
        header, frame = item.header, item.frame
        reference = "" if together else header.frame_of_reference_uid
        kind = (reference, matrix_of(header), is_colour(header), _is_localizer(header), header.modality)
        exact = (kind, frame.orientation, spacing)
        if exact not in seen:
            shape = np.array(
                [*(frame.orientation or ()), *(length / spacing[0] for length in spacing), np.log(spacing[0])]
            )
            limits = np.array([_COSINE] * 6 + [_PIXEL] * 3)
            near = [known for known in groups[kind] if (np.abs(known[0] - shape) <= limits).all()]
            if not near:
                near = [(shape, [], spacing)]
                groups[kind].append(near[0])
            seen[exact] = near[0][1]
        seen[exact].append(item)
    found = [(slices, spacing) for kinds in groups.values() for _, slices, spacing in kinds]
    return sorted(found, key=lambda group: -len(group[0]))


def without_copies(
    members: Sequence[Header],
) -> tuple[list[Header], list[tuple[Header, Header]], list[Refused]]:
    """The files of a series, each SOP instance once; (copy, original) pairs; instances that come in two versions."""
    instances: dict[str, list[Header]] = defaultdict(list)
    for header in members:
        instances[header.sop_instance_uid or str(header.path)].append(header)
    unique: list[Header] = []
    copies: list[tuple[Header, Header]] = []
    refused: list[Refused] = []
    for same in instances.values():
        try:
            equal = len(same) == 1 or len({(header.size, sha256(header.path)) for header in same}) == 1
        except OSError as error:
            refused.append(Refused(tuple(same), refusal("E-FILE-OPEN", f"it cannot be read again ({error.strerror})")))
            continue
        if equal:
            unique.append(same[0])
            copies.extend((copy, same[0]) for copy in same[1:])
        else:
            what = f"{len(same)} different files have the same SOP Instance UID"
            refused.append(Refused(tuple(same), refusal("E-DCM-DUPLICATE", what)))
    return unique, copies, refused


def _with_copies(stack: Stack, copies: Sequence[tuple[Header, Header]]) -> Stack:
    mine = {id(header) for header in stack.headers}
    count = sum(id(original) in mine for _, original in copies)
    return with_notes(stack, Note("W-DCM-DUPLICATE", f"{count} identical copies left out")) if count else stack


def _astray(group: Sequence[Slice], main: Sequence[Slice]) -> Refused | None:
    """One slice of another matrix or pixel size in the middle of a stack: it belongs there, and leaves a gap."""
    axes = axes_of(main[0].frame.orientation or ())
    if len(group) > 1 or len(main) < 3 or axes is None or group[0].header.image_type != main[0].header.image_type:
        return None
    turned = np.subtract(group[0].frame.orientation or (), main[0].frame.orientation or ())
    depths = [float(np.dot(item.frame.position or (), axes.normal)) for item in (*main, group[0])]
    if np.abs(turned).max() > _COSINE or not min(depths[:-1]) < depths[-1] < max(depths[:-1]):
        return None
    what = "a slice of another matrix or pixel size than the stack that it lies in"
    return Refused((group[0].header,), refusal("E-DCM-GAP", what))


def _lost_of(group: Sequence[Slice], lost: Sequence[Header]) -> int:
    """How many lost files could belong to the group: those of its kind of object and its matrix, or of none known."""
    first = group[0].header
    mine = [header for header in lost if header.sop_class_uid == first.sop_class_uid]
    return sum(header.pixels is None or matrix_of(header) == matrix_of(first) for header in mine)


def _incomplete(group: Sequence[Slice], lost: Sequence[Header], policy: Policy) -> Refused | None:
    """The slices of a series of which files cannot be used: refused, unless the user allows what is left."""
    count = _lost_of(group, lost)
    if not count or policy.allow_incomplete or len(group) == 1:
        return None
    headers = tuple({id(item.header): item.header for item in group}.values())
    what = f"{count} files of the series cannot be used, {len(headers)} are left"
    return Refused(headers, refusal("E-DCM-INCOMPLETE", what))


def _lost_note(group: Sequence[Slice], lost: Sequence[Header]) -> tuple[Note, ...]:
    count = _lost_of(group, lost)
    what = f"{count} files of the series cannot be used"
    return (Note("W-DCM-INCOMPLETE", what),) if count and len(group) > 1 else ()


def _is_volume(stack: Stack) -> bool:
    return len(stack.slices) > 1 and stack.affine is not None


def _merged(refused: Sequence[Refused]) -> tuple[Refused, ...]:
    """One refusal for all files of a series that are refused for the same reason, in the same words."""
    groups: dict[tuple[str, str], list[Refused]] = defaultdict(list)
    for item in refused:
        groups[item.error.code, item.error.what].append(item)
    return tuple(Refused(tuple(h for item in same for h in item.headers), same[0].error) for same in groups.values())


def _own_notes(stack: Stack) -> tuple[Note, ...]:
    """What the files themselves were noted for, and Philips' second scale."""
    notes = list(dict.fromkeys(note for header in stack.headers for note in header.notes))
    scales = {header.private_scale for header in stack.headers if header.private_scale}
    slope = stack.slices[0].frame.slope or 1.0
    if scales and max(abs(scale * slope - 1) for scale in scales) > 1e-3:
        what = f"the scanner's own scale slope is {min(scales):g} to {max(scales):g}, the rescale slope {slope:g}"
        notes.append(Note("W-DCM-PRIVATE-SCALE", what))
    return tuple(notes)


def _localizer_note(group: Sequence[Slice], largest: int) -> tuple[Note, ...]:
    if _is_localizer(group[0].header):
        return (Note("W-DCM-LOCALIZER", "the image type says localizer"),)
    if len(group) < largest:
        what = f"{len(group)} slices of another matrix or orientation than the {largest} of the main stack"
        return (Note("W-DCM-LOCALIZER", what),)
    return ()


def _is_localizer(header: Header) -> bool:
    return "LOCALIZER" in header.image_type


def _ends_notes(members: Sequence[Header]) -> tuple[Note, ...]:
    """Whether the numbers of a series say that slices are missing at its ends, where positions cannot."""
    single = [header for header in members if len(header.frames) == 1]
    numbers = sorted({header.instance_number for header in single if header.instance_number is not None})
    expected = max((header.expected_slices or 0 for header in single), default=0)
    what = []
    if len(single) > 1 and len(numbers) == len(single):
        if numbers[0] > 1:
            what.append(f"instance numbers begin with {numbers[0]}")
        if missing := numbers[-1] - numbers[0] + 1 - len(numbers):
            what.append(f"{missing} instance numbers are missing")
    if expected > len(single) > 1:
        what.append(f"{expected} slices are stated, {len(single)} are there")
    return (Note("W-DCM-ENDS", "; ".join(what)),) if what else ()


def _mixed_folders(headers: Sequence[Header]) -> set[Path]:
    patients: dict[Path, set[str]] = defaultdict(set)
    for header in headers:
        if header.patient_id:  # a DICOMDIR has none
            patients[header.path.parent].add(header.patient_id)
    return {folder for folder, found in patients.items() if len(found) > 1}


def _mixed_note(stack: Stack, mixed: set[Path]) -> tuple[Note, ...]:
    if any(header.path.parent in mixed for header in stack.headers):
        return (Note("W-DCM-MIXED-PATIENTS", "other patients' files lie in the same folder"),)
    return ()
