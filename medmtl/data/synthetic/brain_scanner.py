"""Three scanners, each with its own contrast, bias field, voxels, noise and slice direction; and a brain in them.

A scan is made on a :class:`~medmtl.data.synthetic.dicom_phantom.Grid`, so that the same voxels can be written as a
DICOM series or as NIfTI.
"""

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter

from medmtl.data.synthetic.brain_anatomy import Anatomy, Array, Atrophy, Generator, labels, tissues
from medmtl.data.synthetic.dicom_phantom import Grid
from medmtl.io.orient import turn_to
from medmtl.io.volume import Floats, Volume

_FIELD_MM = (168.0, 200.0, 160.0)  # what the image covers along x, y, z; a head needs 24 mm more
_HEAD_MM = 24.0
_CENTRE_RAS = (4.0, -11.0, 18.0)  # of the image; the brain is there too, but for how the head lies


@dataclass(frozen=True)
class Scanner:
    """Intensities of the tissues in units of white matter's; lengths in units of the study's voxel size."""

    name: str
    manufacturer: str
    tesla: float
    fluid: float
    grey: float
    white: float
    unit: float  # stored value of 1
    bias: float  # relative deviation of the field at the border
    noise: float
    blur: float  # sigma, voxels
    voxel: tuple[float, float, float]  # between columns, rows, slices, in units of the study's
    direction: tuple[tuple[float, float, float], ...]  # of growing column, row and slice index (LPS)
    axes: str  # of the NIfTI file, as a converter of that site would write it


_AXIAL = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
_SAGITTAL = ((0.0, 1.0, 0.0), (0.0, 0.0, -1.0), (-1.0, 0.0, 0.0))
SCANNERS = (
    Scanner("GE 1.5T", "GE MEDICAL SYSTEMS", 1.5, 0.18, 0.62, 1.0, 400, 0.06, 0.035, 0.0,
            (1.0, 1.0, 1.0), _AXIAL, "LAS"),
    Scanner("Siemens 3T", "SIEMENS", 3.0, 0.12, 0.55, 1.0, 1000, 0.18, 0.020, 0.0,
            (0.9, 0.9, 1.15), _AXIAL, "RAS"),
    Scanner("Philips 1.5T", "Philips", 1.5, 0.30, 0.74, 1.0, 1900, 0.10, 0.045, 0.45,
            (1.0, 1.0, 1.2), _SAGITTAL, "PSR"),
)  # fmt: skip


@dataclass(frozen=True)
class Pose:
    """How the head lies in the scanner: turned about x, y, z (radians), then moved (mm)."""

    turn: tuple[float, float, float]
    move: tuple[float, float, float]


def draw_pose(rng: Generator) -> Pose:
    """Within a few degrees and millimetres, as heads lie after a rigid alignment by the technician."""
    a, b, c = (float(value) for value in rng.normal(0, 0.04, 3))
    x, y, z = (float(value) for value in rng.normal(0, 2.0, 3))
    return Pose((a, b, c), (x, y, z))


def grid_of(scanner: Scanner, spacing_mm: float, *, head: bool) -> Grid:
    """The frames that cover a brain, or a ``head``, with voxels of about ``spacing_mm``."""
    field = np.array(_FIELD_MM) + (_HEAD_MM if head else 0)
    axes = np.abs(np.array(scanner.direction))
    across, down, between = (float(spacing_mm * factor) for factor in scanner.voxel)
    columns, rows, frames = (round(float(axes[n] @ field) / size) for n, size in enumerate((across, down, between)))
    centre = (-_CENTRE_RAS[0], -_CENTRE_RAS[1], _CENTRE_RAS[2])
    offsets = tuple(between * k for k in range(frames))
    return Grid(columns, rows, offsets, (across, down), scanner.direction, centre=centre)  # type: ignore[arg-type]


def scan(
    anatomy: Anatomy,
    atrophy: Atrophy,
    scanner: Scanner,
    *,
    pose: Pose,
    rng: Generator,
    spacing_mm: float,
    head: bool,
) -> tuple[Volume, Volume]:
    """(image int16, labels uint8) on the scanner's own grid, as a DICOM reader would return it.

    Without ``head`` the image is 0 outside the inner skull, as skull stripping leaves it.
    """
    grid = grid_of(scanner, spacing_mm, head=head)
    affine = grid.affine()
    voxel_mm = float(np.prod([*grid.spacing_mm, grid.offsets_mm[1] - grid.offsets_mm[0]]) ** (1 / 3))
    points = _points(affine, (grid.columns, grid.rows, len(grid)), pose)
    found = tissues(anatomy, atrophy, points, voxel_mm)
    grey = found.cortex + found.hippocampi
    fluid = found.inside - grey - found.white_matter
    light = scanner.fluid * fluid + scanner.grey * grey + scanner.white * found.white_matter
    if head:
        light = light + 0.06 * found.bone + 0.85 * found.scalp
    light = light * _bias(points, scanner.bias, rng)
    if scanner.blur:
        light = gaussian_filter(light, scanner.blur)
    noise = rng.standard_normal((2, *light.shape), dtype=np.float32) * np.float32(scanner.noise)
    seen = np.hypot(light + noise[0], noise[1])  # the magnitude of a complex signal: Rician
    if not head:
        seen = seen * (found.inside > 0.5)
    stored = np.clip(np.round(seen * scanner.unit), 0, 4095).astype(np.int16)
    return Volume(stored, affine), Volume(labels(found), affine)


def turned_to(volume: Volume, axes: str) -> Volume:
    """The same voxels in the same places, stored along other axes."""
    assert volume.affine is not None
    turn, affine = turn_to(volume.affine, volume.array.shape, axes)
    return Volume(np.ascontiguousarray(turn.apply(volume.array)), affine)


def _points(affine: Floats, shape: tuple[int, int, int], pose: Pose) -> tuple[Array, Array, Array]:
    """Coordinates (x, y, z) of the voxel centres in the head's own system, [I, J, K] each."""
    rotation = np.eye(3)
    for axis, angle in enumerate(pose.turn):
        first, second = (a for a in range(3) if a != axis)
        one = np.eye(3)
        one[first, first] = one[second, second] = np.cos(angle)
        one[first, second], one[second, first] = -np.sin(angle), np.sin(angle)
        rotation = one @ rotation
    matrix = (rotation.T @ affine[:3, :3]).astype(np.float32)
    origin = (rotation.T @ (affine[:3, 3] - np.array(_CENTRE_RAS) - np.array(pose.move))).astype(np.float32)
    i, j, k = (np.arange(n, dtype=np.float32) for n in shape)
    x, y, z = (
        (row[0] * i)[:, None, None] + (row[1] * j)[:, None] + row[2] * k + start
        for row, start in zip(matrix, origin, strict=True)
    )
    return x, y, z


def _bias(points: tuple[Array, Array, Array], strength: float, rng: Generator) -> Array:
    """A smooth gain around 1: linear and quadratic in the place, another one in each scan."""
    x, y, z = (p / np.float32(90) for p in points)
    a = rng.normal(0, strength, 6).astype(np.float32)
    return np.asarray(1 + a[0] * x + a[1] * y + a[2] * z + a[3] * x * x + a[4] * y * y + a[5] * z * z, np.float32)
