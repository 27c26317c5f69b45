"""A volume out of the frames that belong together: sorted along the normal, checked, and given its affine."""

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from medmtl.io.dicom.geometry import Axes, Shift, Spacing, affine_of, axes_of, shift_of, spacing_of
from medmtl.io.dicom.neighbours import neighbours
from medmtl.io.dicom.pixelsize import is_colour, itemsize_of
from medmtl.io.dicom.record import Frame, Header
from medmtl.io.dicom.separate import CONTRASTS, TEMPORAL, TIME, Part, Placed, Split, separate
from medmtl.io.dicom.stack import Policy, Refused, Regrid, Slice, Stack
from medmtl.io.reasons import refusal
from medmtl.io.volume import Floats, Note

_LARGEST = 1e30  # a slope or intercept beyond it is damage; NaN and inf are too
_SAME_MM = 0.01  # positions that are closer along the normal are one
_UNSPECIFIED = ("", "US")


def assemble(slices: Sequence[Slice], spacing: tuple[float, float], policy: Policy) -> list[Stack | Refused]:
    """The volumes that ``slices`` of one series, matrix, orientation and pixel size make up, and what makes none."""
    orientation = slices[0].frame.orientation
    axes = axes_of(orientation) if orientation else None
    if axes is None:
        return [_refused(slices, "E-DCM-GEOMETRY", f"the image orientation is not orthonormal: {orientation}")]
    depths = np.array([np.dot(item.frame.position or (0, 0, 0), axes.normal) for item in slices])
    order = np.argsort(depths, kind="stable")
    cells = _cells(depths[order], slices[0].header.thickness_mm)
    members = [Placed(slices[n], int(cell), float(depths[n])) for n, cell in zip(order, cells, strict=True)]
    parts = separate(members, policy)
    whole = [part for part in parts if part.whole]
    results: list[Stack | Refused] = [_unresolved(part, axes) for part in parts if not part.whole]
    for group in _over_time(whole) if policy.time == "stack" else [[part] for part in whole]:
        results.append(_volume(group, axes, spacing, policy))
    return results


def _cells(depths: Floats, thickness: float | None) -> Floats:
    """The number of the position that each of the sorted ``depths`` is at."""
    same = min(_SAME_MM, 0.1 * thickness) if thickness else _SAME_MM
    return np.concatenate([[0], np.cumsum(np.diff(depths) > same)])


def _over_time(parts: Sequence[Part]) -> list[list[Part]]:
    """Parts that differ in time alone, together, if they have the same positions and are grey."""
    groups: dict[tuple[object, ...], list[Part]] = {}
    for part in parts:
        rest = tuple(label for label in part.split if label[0] not in TEMPORAL)
        cells = tuple(sorted(member.cell for member in part.members))
        colour = is_colour(part.members[0].slice.header)
        groups.setdefault((rest, cells, part.split if colour else None), []).append(part)
    return list(groups.values())


def _volume(parts: Sequence[Part], axes: Axes, spacing: tuple[float, float], policy: Policy) -> Stack | Refused:
    first = [member.slice for member in sorted(parts[0].members, key=lambda member: member.cell)]
    slices = [m.slice for part in parts for m in sorted(part.members, key=lambda member: member.cell)]
    positions = np.array([item.frame.position for item in first])
    depths = positions @ axes.normal
    if flaw := scale_flaw([item.frame for item in slices]):
        return _refused(slices, "E-DCM-RESCALE", flaw)
    units = _units(slices)
    if len(units) > 1:
        return _refused(
            slices, "E-DCM-UNITS", f"units {', '.join(sorted(unit or 'unknown' for unit in units))} in one volume"
        )
    header = first[0].header
    if len(first) == 1:
        step, note = _thickness(header)
        regrid, notes = None, note
        lattice = axes.normal * step
    else:
        found = spacing_of(depths, policy)
        shift = shift_of(positions, depths, axes)
        if problem := _grid_problem(slices, neighbours(first, depths, found.step_mm), found, shift, policy):
            return problem
        regrid, notes = _regrid(depths, found, shift, spacing, policy)
        upright = shift.angle_deg == 0 or regrid is not None
        step = regrid.step_mm if regrid else found.step_mm
        lattice = axes.normal * step if upright else (positions[-1] - positions[0]) / (len(first) - 1)
        notes = (*notes, *_stated_step(header, found), *_mixed(parts))
    return _stack(slices, len(parts), axes, spacing, lattice, regrid, units, _common(parts), notes, policy)


def _stack(
    slices: Sequence[Slice], times: int, axes: Axes, spacing: tuple[float, float], lattice: Floats,
    regrid: Regrid | None, units: set[str], split: Split, notes: tuple[Note, ...], policy: Policy,
) -> Stack | Refused:  # fmt: skip
    header = slices[0].header
    rows, columns = matrix_of(header)
    origin = np.array(slices[0].frame.position)
    count = len(slices) // times
    if regrid:
        extra = np.ceil(np.max(regrid.shifts_px, axis=0) - 1e-6).astype(int)
        origin = (
            origin - regrid.shifts_px[0][0] * spacing[1] * axes.row - regrid.shifts_px[0][1] * spacing[0] * axes.column
        )
        rows, columns, count = rows + int(extra[1]), columns + int(extra[0]), regrid.count
    colour = is_colour(header)
    shape: tuple[int, ...] = (columns, rows, count)
    shape = (*shape, 3) if colour else (*shape, times) if times > 1 else shape
    size = math.prod(shape) * (1 if colour else max(itemsize_of(header), 4 if regrid else 1))
    if size > policy.max_bytes:
        return _refused(
            slices, "E-DCM-SIZE", f"the volume would take {size:,} bytes; the limit is {policy.max_bytes:,}"
        )
    affine = affine_of(origin, axes, spacing, rows, lattice)
    return Stack(
        slices=tuple(slices),
        key=key_of(slices),
        affine=affine,
        shape=shape,
        colour=colour,
        spacing=(spacing[1], spacing[0], float(np.linalg.norm(lattice))),
        times=times,
        time_step_s=_time_step(slices, times) if times > 1 else None,
        units=_unit(units, header),
        split=split,
        regrid=regrid,
        notes=notes,
    )


def matrix_of(header: Header) -> tuple[int, int]:
    """(rows, columns) of a frame, or of a tile of a mosaic."""
    assert header.pixels is not None
    side = math.isqrt(header.mosaic_tiles - 1) + 1 if header.mosaic_tiles else 1
    return header.pixels.rows // side, header.pixels.columns // side


def key_of(slices: Sequence[Slice]) -> str:
    """The identity of a volume: a hash of which frames of which SOP instances it is made of, in any order."""
    names = sorted(f"{item.header.sop_instance_uid}#{item.frame.index}#{item.frame.tile}" for item in slices)
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]


def _units(slices: Sequence[Slice]) -> set[str]:
    return {"" if item.frame.units in _UNSPECIFIED else item.frame.units for item in slices}


def scale_flaw(frames: Sequence[Frame]) -> str:
    """What is wrong with the rescale of frames that need one scale each; empty if nothing is."""
    for name in ("slope", "intercept"):
        values = [value for frame in frames if (value := getattr(frame, name)) is not None]
        bad = [value for value in values if not abs(value) <= _LARGEST or (name == "slope" and value == 0)]
        if bad:
            return f"the rescale {name} is {bad[0]:g} in {len(bad)} of {len(frames)} slices"
        if 0 < len(values) < len(frames):
            return f"the rescale {name} is missing in {len(frames) - len(values)} of {len(frames)} slices"
    return ""


def _unit(units: set[str], header: Header) -> str:
    unit = next(iter(units))
    return "HU" if header.modality == "CT" and not unit else unit


def _thickness(header: Header) -> tuple[float, tuple[Note, ...]]:
    if header.thickness_mm:
        return header.thickness_mm, ()
    note = Note("W-DCM-THICKNESS", "one slice of unknown thickness: its affine says 1 mm")
    return 1.0, (note,)


def _grid_problem(slices: Sequence[Slice], where: str, found: Spacing, shift: Shift, policy: Policy) -> Refused | None:
    """Why slices make no even, upright grid; ``where``: between which of them the distances are odd."""
    if not shift.straight:
        off = float(np.abs(shift.offsets_mm).max())
        return _refused(
            slices, "E-DCM-IRREGULAR", f"the slices are shifted sideways by up to {off:.2f} mm, along no line"
        )
    if shift.angle_deg and policy.tilt == "refuse":
        uneven = "" if found.even else f"; and the slices are uneven, {_list(found.gaps_mm)} mm apart"
        return _refused(
            slices, "E-DCM-TILT", f"the slices are tilted by {shift.angle_deg:.2f} degrees against their stack{uneven}"
        )
    if found.even:
        return None
    if found.missing_mm and policy.gap == "refuse":
        what = f"{len(found.missing_mm)} slices are missing: they are {found.step_mm:.3f} mm apart"
        return _refused(
            slices,
            "E-DCM-GAP",
            f"{what}, and there is none at {_list(found.missing_mm)} mm from the first: {where}",
        )
    if not found.missing_mm and policy.irregular == "refuse":
        what = f"the slices are uneven, {_list(found.gaps_mm)} mm apart: look {where}"
        return _refused(slices, "E-DCM-IRREGULAR", what)
    if shift.angle_deg and policy.tilt == "keep":
        what = f"a tilt of {shift.angle_deg:.2f} degrees can be kept only where slices are even; they are"
        return _refused(slices, "E-DCM-TILT", f"{what} {_list(found.gaps_mm)} mm apart")
    return None


def _regrid(
    depths: Floats, found: Spacing, shift: Shift, spacing: tuple[float, float], policy: Policy
) -> tuple[Regrid | None, tuple[Note, ...]]:
    """How to make an upright, even grid of the slices, where they are none; and the notes that say so."""
    notes: list[Note] = []
    deshear = bool(shift.angle_deg) and policy.tilt == "resample"
    if shift.angle_deg and not deshear:
        notes.append(Note("W-DCM-TILT", f"tilted by {shift.angle_deg:.2f} degrees; the affine is sheared"))
    if found.even and not deshear:
        return None, tuple(notes)
    pixels = shift.offsets_mm / np.array([spacing[1], spacing[0]]) if deshear else np.zeros((len(depths), 2))
    pixels = pixels - pixels.min(axis=0)
    offsets = depths - depths[0]
    count = round(float(offsets[-1]) / found.step_mm) + 1
    step = float(offsets[-1]) / (count - 1)
    if deshear:
        most = float(np.abs(shift.offsets_mm).max())
        notes.append(
            Note("R-DCM-DESHEARED", f"tilted by {shift.angle_deg:.2f} degrees: slices shifted by up to {most:.2f} mm")
        )
    if not found.even:
        why = f"none at {_list(found.missing_mm)} mm" if found.missing_mm else f"{_list(found.gaps_mm)} mm apart"
        notes.append(Note("R-DCM-RESAMPLED", f"{len(depths)} slices, {why}: resampled to {count}, {step:.4f} mm apart"))
    shifts = tuple((float(x), float(y)) for x, y in pixels)
    return Regrid(tuple(offsets.tolist()), shifts, step, count), tuple(notes)


def _stated_step(header: Header, found: Spacing) -> tuple[Note, ...]:
    stated = header.slice_spacing_mm
    if stated is None or header.mosaic_tiles or abs(found.step_mm - stated) <= 0.1 * stated:
        return ()
    return (Note("W-DCM-SLICE-SPACING", f"slices lie {found.step_mm:.3f} mm apart, the header states {stated:.3f}"),)


def _mixed(parts: Sequence[Part]) -> tuple[Note, ...]:
    """A word on slices of another contrast than the rest of their volume, where they make no volume of their own."""
    found = []
    for name in CONTRASTS:
        counts = [Counter(member.slice.frame.split.get(name) for member in part.members) for part in parts]
        others = sum(count.total() - max(count.values()) for count in counts)
        if others:
            found.append(f"{name} in {others} of {sum(count.total() for count in counts)}")
    return (Note("W-DCM-CONTRAST", f"slices differ from the rest: {', '.join(found)}"),) if found else ()


def _common(parts: Sequence[Part]) -> Split:
    """What separates the volume from others; over time, what its time points have in common."""
    if len(parts) == 1:
        return parts[0].split
    return tuple(label for label in parts[0].split if label[0] not in TEMPORAL)


def _time_step(slices: Sequence[Slice], times: int) -> float | None:
    """Seconds between time points: of their first slices, if they are even; of a mosaic, its repetition time."""
    header, count = slices[0].header, len(slices) // times
    repetition = header.facts.get("RepetitionTime")
    if header.mosaic_tiles and isinstance(repetition, float):
        return repetition / 1000
    clock = [slices[time * count].frame.split.get("AcquisitionTime") for time in range(times)]
    moments = np.array([value if isinstance(value, float) else np.nan for value in clock])
    steps = np.diff(moments)
    step = float(np.mean(steps))
    return step if math.isfinite(step) and step > 0 and np.abs(steps - step).max() <= 0.02 * step else None


def _unresolved(part: Part, axes: Axes) -> Refused:
    slices = [member.slice for member in part.members]
    counts = Counter(member.cell for member in part.members)
    most = max(counts.values())
    depths = {
        member.cell: float(np.dot(member.slice.frame.position or (0, 0, 0), axes.normal)) for member in part.members
    }
    if most > 1:
        places = sorted(depths[cell] for cell, count in counts.items() if count > 1)
        what = f"up to {most} frames at one position, which nothing tells apart: at {_list(tuple(places))} mm"
    else:
        label = ", ".join(f"{name} {value}" for name, value in part.split if name != TIME) or "another time"
        what = f"{len(slices)} frames of {label} cover only a part of the positions of their stack"
    return _refused(slices, "E-DCM-POSITION", what)


def _refused(slices: Sequence[Slice], code: str, what: str) -> Refused:
    headers = tuple({id(item.header): item.header for item in slices}.values())
    return Refused(headers, refusal(code, what))


def _list(values: Sequence[float]) -> str:
    shown = ", ".join(f"{value:.3f}".rstrip("0").rstrip(".") for value in values[:8])
    return f"{shown}, ... ({len(values)} in all)" if len(values) > 8 else shown


def with_notes(stack: Stack, *notes: Note) -> Stack:
    """The stack with further notes."""
    return replace(stack, notes=(*stack.notes, *notes))
