"""Where a NIfTI image lies: sform, qform, units and voxel sizes, made one affine in millimetres or refused."""

import math
from dataclasses import dataclass

import numpy as np
from nibabel.quaternions import fillpositive, quat2mat

from medmtl.io.affine import angle_deg, corner_distance_mm, corners_mm, shear_deg, spacing_mm, volume_factor
from medmtl.io.reasons import refusal
from medmtl.io.volume import Floats, Note

APART_MM, APART_DEG = 1.0, 1.0  # sform and qform may differ by less without a word
SHEAR_DEG = 0.06  # a cosine of 0.001: what rounding of printed matrices does
MIN_SPACING_MM, MAX_SPACING_MM = 1e-3, 1e3
FARTHEST_MM = 1e6  # a corner a kilometre from the scanner's centre is a damaged number
_FLAT = 1e-3  # volume of a voxel over that of a box with its edges
_W2 = 3 * float(np.finfo(np.float32).eps)  # rounding of three float32 squares, as nibabel has it
_MM = {1: ("metres", 1e3), 2: ("millimetres", 1.0), 3: ("microns", 1e-3)}  # xyzt_units, bits 0 to 2
_CODES = range(6)  # unknown, scanner, aligned, Talairach, MNI, template


@dataclass(frozen=True)
class Space:
    """The affine (None: nothing is said) and the size of a voxel in mm (None: not known either)."""

    affine: Floats | None
    spacing: tuple[float, ...] | None
    sform_code: int
    qform_code: int
    notes: tuple[Note, ...]


def read_space(fields: np.void, shape: tuple[int, int, int], name: str) -> Space:
    """The sform if its code is above 0, else the qform if its code is, else no place and only voxel sizes.

    A damaged affine, voxels below 1 micron or above 1 m, and codes that the standard does not have are refused.
    Lengths in metres or microns become mm. Shear is kept.
    """
    sform_code, qform_code = int(fields["sform_code"]), int(fields["qform_code"])
    if sform_code not in _CODES or qform_code not in _CODES:
        raise refusal("E-NII-HEADER", f"sform_code = {sform_code}, qform_code = {qform_code}", where=name)
    notes: list[Note] = []
    unit = int(fields["xyzt_units"]) & 7
    factor = _unit(unit, notes)
    sform = _sform(fields, factor) if sform_code else None
    qform = _qform(fields, shape, factor) if qform_code else None
    affine = sform if sform_code else qform
    if not (sform_code or qform_code):
        spacing = _plain_spacing(fields, shape, factor, unit, notes)
    else:
        if affine is None or not _sound(affine, shape):
            which = "sform" if sform_code else "qform"
            raise refusal("E-NII-PLACE", f"the {which} is no usable affine: {_numbers(fields, which)}", where=name)
        spacing = spacing_mm(affine)
        _compare(fields, affine, qform, shape, factor, notes)
    if spacing and not MIN_SPACING_MM * 0.999 <= min(spacing) <= max(spacing) <= MAX_SPACING_MM:
        raise refusal("E-NII-SPACING", f"voxels of {_list(spacing)} mm", where=name)
    return Space(affine, spacing, sform_code, qform_code, tuple(notes))


def _unit(unit: int, notes: list[Note]) -> float:
    name, factor = _MM.get(unit, ("", 1.0))
    if not name:
        notes.append(Note("W-NII-UNITS", f"unit {unit} of length is unknown and taken as mm"))
    elif factor != 1:
        notes.append(Note("R-NII-UNITS", f"{name} became mm (factor {factor:g})"))
    return factor


def _sform(fields: np.void, factor: float) -> Floats:
    affine = np.eye(4)
    affine[:3] = [fields["srow_x"], fields["srow_y"], fields["srow_z"]]
    affine[:3] *= factor
    return affine


def _qform(fields: np.void, shape: tuple[int, int, int], factor: float) -> Floats | None:
    """The affine of the quaternion (nifti1.h, method 2), or None where it has none.

    A plane's third voxel size, which moves no voxel, counts as 1 where it is 0. The sign of pixdim[0] mirrors k.
    """
    quaternion = np.array([fields[f"quatern_{axis}"] for axis in "bcd"], dtype=np.float64)
    size = np.array(fields["pixdim"][1:4], dtype=np.float64)
    size[2] = 1.0 if shape[2] == 1 and size[2] == 0 else size[2]
    if not np.isfinite(quaternion).all() or not (np.isfinite(size) & (size > 0)).all():
        return None
    try:
        rotation = quat2mat(fillpositive(quaternion, _W2))
    except ValueError:  # longer than a unit quaternion
        return None
    affine = np.eye(4)
    affine[:3, :3] = rotation * size * [1, 1, -1 if fields["pixdim"][0] < 0 else 1]
    affine[:3, 3] = [fields[f"qoffset_{axis}"] for axis in "xyz"]
    affine[:3] *= factor
    return affine


def _sound(affine: Floats, shape: tuple[int, int, int]) -> bool:
    """Finite, near the scanner, and no axis zero or in the plane of the others."""
    return (
        bool(np.isfinite(affine).all())
        and bool(np.abs(corners_mm(affine, shape)).max() < FARTHEST_MM)
        and min(spacing_mm(affine)) > 0
        and abs(volume_factor(affine)) > _FLAT
    )


def _compare(
    fields: np.void, affine: Floats, qform: Floats | None, shape: tuple[int, int, int], factor: float, notes: list[Note]
) -> None:
    """Notes on what disagrees with the affine that is used."""
    if int(fields["sform_code"]) and int(fields["qform_code"]):
        if qform is None or not _sound(qform, shape):
            notes.append(Note("W-NII-SFORM-QFORM", "the sform is used, the qform is damaged"))
        else:
            apart, turned = corner_distance_mm(affine, qform, shape), angle_deg(affine, qform)
            if apart > APART_MM or turned > APART_DEG:
                found = f"the sform is used, the qform is {apart:.4g} mm and {turned:.3g} degrees away"
                notes.append(Note("W-NII-SFORM-QFORM", found))
    claimed = np.abs(np.array(fields["pixdim"][1:4], dtype=np.float64)) * factor
    if int(fields["sform_code"]) and not np.allclose(claimed, spacing_mm(affine), rtol=0.01, atol=0):
        notes.append(Note("W-NII-PIXDIM", f"pixdim says {_list(claimed)} mm, the sform {_list(spacing_mm(affine))} mm"))
    if (shear := shear_deg(affine)) > SHEAR_DEG:
        notes.append(Note("W-NII-SHEAR", f"the axes are {shear:.3g} degrees off right angles"))


def _plain_spacing(
    fields: np.void, shape: tuple[int, int, int], factor: float, unit: int, notes: list[Note]
) -> tuple[float, ...] | None:
    """Voxel sizes of an image without a place: two for a plane; None where they are not given or not positive.

    All 1 in no unit is what a header holds that nobody filled.
    """
    sizes = [float(size) * factor for size in fields["pixdim"][1:4]][: 2 if shape[2] == 1 else 3]
    known = all(math.isfinite(size) and size > 0 for size in sizes) and not (unit not in _MM and set(sizes) == {1.0})
    size = f"voxels of {_list(sizes)} mm" if known else "no voxel size"
    notes.append(Note("W-NII-NO-PLACE", f"sform_code = qform_code = 0: {size}, sides unknown"))
    return tuple(sizes) if known else None


def _numbers(fields: np.void, which: str) -> str:
    names = ("srow_x", "srow_y", "srow_z") if which == "sform" else ("quatern_b", "quatern_c", "quatern_d", "pixdim")
    return ", ".join(f"{name} = {np.asarray(fields[name]).tolist()}" for name in names)


def _list(sizes: object) -> str:
    return " x ".join(f"{size:.4g}" for size in np.asarray(sizes, dtype=np.float64).tolist())
