"""What a reader of a phantom folder owes, and by how much a volume that it returned is off.

A volume is judged by where it puts its voxels and what it says is there; the order and direction of its axes are its
own affair. A grid other than the acquired one (a resampled volume) is judged against the analytic phantom.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medmtl.data.synthetic.dicom_phantom import Floats, Grid, Phantom

Array = npt.NDArray[np.generic]
PLACE_MM = 0.1  # how far any voxel may lie from where it is
RESAMPLED = 25.0  # intensities off that linear interpolation over 2.5 mm may cost; an interpolated gap costs more
COVERED = 0.99  # the share of the acquired voxels that a resampled volume must hold


@dataclass(frozen=True)
class Expected:
    """One volume that a reader owes: ``voxels()`` [I, J, K] (colour [I, J, K, 3]) within ``tolerance`` intensities.

    Axes are those of :class:`medmtl.io.volume.Volume`. ``affine`` is None where the file does not say where the image
    lies. ``padding`` marks voxels that hold no measurement: they must be no brighter than ``floor``. ``others`` are
    further (scale, offset) of the same intensities that are as right (displayed and precise values of Philips).
    ``optional``: right if it is there, and no harm if it is refused or left out with a word.
    """

    name: str
    shape: tuple[int, ...]
    affine: Floats | None
    voxels: Callable[[], Array]
    tolerance: float
    phantom: Phantom | None = None
    padding: npt.NDArray[np.bool_] | None = None
    floor: float = np.inf
    spacing: tuple[float, float] | None = None  # of an image without an affine, where it is known
    others: tuple[tuple[float, float], ...] = ()
    optional: bool = False


@dataclass(frozen=True)
class Truth:
    """What lies in a folder, and what reading it must end with.

    ``codes``: reason codes of which each refusal must be one; with ``volumes`` beside them both are owed, or
    (``either``) one of the two. ``notes``: codes of which one must come with the volumes; ``warn``: a reader that says
    nothing at all beside them hides what happened. ``identifiers`` are all strings of a person, place, date or UID that
    stand in the files.
    """

    volumes: tuple[Expected, ...] = ()
    codes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    either: bool = False
    warn: bool = False
    phantom: Phantom = field(default_factory=Phantom)
    identifiers: tuple[str, ...] = ()

    def value(self, points_mm: npt.ArrayLike) -> Floats:
        """Intensity of the (first) phantom at RAS+ points [..., 3] mm."""
        return self.phantom.value(points_mm)


@dataclass(frozen=True)
class Kind:
    """A folder: ``what`` is unusual about it, and ``write(out, seed)``, which makes it and returns its truth."""

    what: str
    write: Callable[[Path, int], Truth]


def expected(name: str, grid: Grid, phantom: Phantom, *, step: float = 1.0, **more: object) -> Expected:
    """The volume of ``phantom`` on ``grid``, stored in units of ``step`` and hence exact to half of it."""
    shape = (grid.columns, grid.rows, len(grid))
    tolerance = step / 2 + 0.01 + abs(phantom.scale) * _wobble(grid)
    return Expected(name, shape, grid.affine(), partial(_stack, grid, phantom), tolerance, phantom, **more)  # type: ignore[arg-type]


def _stack(grid: Grid, phantom: Phantom) -> Array:
    """[columns, rows reversed, frames] of the phantom, each frame where it truly lies."""
    frames = [phantom.value(grid.points(k)) for k in range(len(grid))]
    return np.stack([frame[::-1].T for frame in frames], -1)


def _wobble(grid: Grid) -> float:
    """Intensity that slightly uneven steps cost: the phantom changes by less than 60 per mm."""
    even = np.linspace(grid.offsets_mm[0], grid.offsets_mm[-1], len(grid))
    off = np.abs(even - np.array(grid.offsets_mm)).max()
    return float(60 * off) if 0 < off <= 0.05 else 0.0


def flaws(want: Expected, array: Array, affine: Floats | None) -> str:
    """What is wrong with a returned volume, with numbers; empty when it is the one that is owed."""
    array = np.asarray(array)
    if want.affine is None:
        return _picture_flaws(want, array)
    if affine is None or not np.isfinite(affine).all():
        return "says nothing of where it lies"
    if array.ndim != 3:
        return f"shape {array.shape} for {want.shape}"
    affine = _as_thick(want, array.shape, affine)
    onto = _onto_grid(want, array.shape, affine)
    if onto is None:
        return _resampled_flaws(want, array, affine)
    return _value_flaws(want, _reoriented(array, onto))


def untrue(phantoms: Sequence[Phantom], array: Array, affine: Floats | None) -> str:
    """What a volume says that none of the phantoms does, on whatever grid; empty when all its voxels are true."""
    array = np.asarray(array)
    if affine is None or array.ndim != 3 or not np.isfinite(affine).all():
        return "says nothing of where it lies"
    points = _world(affine, array.shape)
    return min((_true_flaws(phantom, array, points) for phantom in phantoms), key=len)


def _as_thick(want: Expected, shape: tuple[int, ...], affine: Floats) -> Floats:
    """The affine of a single slice as if its thickness were the owed one: nothing in a file depends on it."""
    if want.affine is None or want.shape[2] != 1 or shape[2] != 1:
        return affine
    step = np.linalg.norm(affine[:3, 2])
    scale = np.diag([1, 1, np.linalg.norm(want.affine[:3, 2]) / step if step else 1.0, 1])
    return np.asarray(affine @ scale)


def _onto_grid(want: Expected, shape: tuple[int, ...], affine: Floats) -> Floats | None:
    """[3, 4] signed permutation of returned onto owed indices, when they differ by no more; None otherwise."""
    assert want.affine is not None
    if abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        return None
    relation = np.linalg.inv(want.affine) @ affine
    turn = np.round(relation[:3, :3])
    if not np.array_equal(np.abs(turn).sum(0), [1, 1, 1]) or not np.array_equal(np.abs(turn).sum(1), [1, 1, 1]):
        return None
    owed = np.abs(turn) @ np.array(shape)
    if not np.array_equal(owed, want.shape):
        return None
    origin = np.where(turn.sum(1) < 0, owed - 1, 0)
    exact = np.eye(4)
    exact[:3, :3], exact[:3, 3] = turn, origin
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in shape], (1,))).reshape(4, -1)
    off = np.linalg.norm(((want.affine @ exact - affine) @ corners)[:3], axis=0).max()
    return exact[:3] if off <= PLACE_MM else None


def _reoriented(array: Array, onto: Floats) -> Array:
    """The returned voxels in the owed order of axes."""
    order = [int(np.flatnonzero(row)[0]) for row in onto[:, :3]]
    moved = np.transpose(array, order)
    return np.asarray(moved[tuple(slice(None, None, int(row.sum())) for row in onto[:, :3])])


def _value_flaws(want: Expected, array: Array) -> str:
    if not np.isfinite(array).all():
        return f"{np.count_nonzero(~np.isfinite(array))} voxels are not finite"
    truth, got = want.voxels().astype(np.float64), array.astype(np.float64)
    measured = np.ones(truth.shape, bool) if want.padding is None else ~want.padding
    off = min(np.abs(got - (a * truth + b))[measured].max() / max(a, 1.0) for a, b in ((1.0, 0.0), *want.others))
    if off > want.tolerance:
        return f"intensities off by {off:.4g}"
    if not measured.all() and got[~measured].max() > want.floor:
        return f"padding as bright as {got[~measured].max():.4g}"
    return ""


def _picture_flaws(want: Expected, array: Array) -> str:
    """An image without a place: any of the eight orientations, colour first or last, is its reader's affair."""
    truth = want.voxels().astype(np.float64).squeeze()
    got = np.asarray(array).astype(np.float64).squeeze()
    if truth.ndim == 3 and got.ndim == 3 and got.shape[0] == 3 != got.shape[-1]:
        got = np.moveaxis(got, 0, -1)
    candidates = (
        [side[::a, ::b] for side in (got, got.swapaxes(0, 1)) for a in (1, -1) for b in (1, -1)] if got.ndim > 1 else []
    )
    offs = [float(np.abs(one - truth).max()) for one in candidates if one.shape == truth.shape]
    if not offs:
        return f"shape {got.shape} for {truth.shape}"
    return f"intensities off by {min(offs):.4g}" if min(offs) > want.tolerance else ""


def _resampled_flaws(want: Expected, array: Array, affine: Floats) -> str:
    """A volume on a grid of its own: all of what was acquired must be in it, true and in place."""
    assert want.affine is not None and want.phantom is not None
    points = _world(affine, array.shape)
    index = (points - want.affine[:3, 3]) @ np.linalg.inv(want.affine[:3, :3]).T
    inside = np.all((index > 0.5) & (index < np.array(want.shape) - 1.5), -1)  # half a voxel from the border
    covered = _covered(want, array.shape, affine)
    if covered < COVERED or not inside.any():
        return f"{_apart(want, array.shape, affine)}holds {covered:.0%} of what was acquired"
    wrong = _true_flaws(want.phantom, array, points, inside)
    return wrong and _apart(want, array.shape, affine) + wrong


def _covered(want: Expected, shape: tuple[int, ...], affine: Floats) -> float:
    """The share of the owed voxels whose centres lie in a voxel of the returned volume."""
    assert want.affine is not None
    if abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        return 0.0
    index = (_world(want.affine, want.shape) - affine[:3, 3]) @ np.linalg.inv(affine[:3, :3]).T
    return float(np.mean(np.all((index > -0.51) & (index < np.array(shape) - 0.49), -1)))


def _apart(want: Expected, shape: tuple[int, ...], affine: Floats) -> str:
    """How far the corners of the returned volume are from those of the owed one, when that says something."""
    assert want.affine is not None
    boxes = []
    for one, size in ((affine, shape), (want.affine, want.shape)):
        corners = np.array(np.meshgrid(*[(0, n - 1) for n in size])).reshape(3, -1).T
        boxes.append(corners @ one[:3, :3].T + one[:3, 3])
    off = np.linalg.norm(boxes[0][:, None] - boxes[1][None], axis=-1).min(1).max()
    return f"corners {off:.3g} mm off, " if off > PLACE_MM else ""


def _true_flaws(phantom: Phantom, array: Array, points: Floats, inside: Array | None = None) -> str:
    """Residuals against the phantom, and the rigid and shearing displacement that explains them best."""
    residual = array.astype(np.float64) - phantom.value(points)
    chosen = np.ones(array.shape, bool) if inside is None else inside
    residual, points = residual[chosen], points[chosen]
    off = float(np.abs(residual).max()) if residual.size else np.inf
    if not off <= RESAMPLED * abs(phantom.scale):
        return f"intensities off by {off:.4g}"
    moved = misplacement_mm(phantom, residual, points)
    return f"displaced by {moved:.3g} mm" if moved > PLACE_MM else ""


def misplacement_mm(phantom: Phantom, residual: Floats, points: Floats) -> float:
    """The largest displacement [mm] of the affine motion d(x) that explains the residuals at points [N, 3].

    residual ≈ ∇v·d(x) + Σ c_ij ∂²v/∂x_i∂x_j, where the second term takes up what interpolation smoothed.
    """
    every = max(1, len(points) // 4000)
    residual, points = residual[::every], points[::every]
    centred = np.column_stack([points - points.mean(0), np.ones(len(points))])
    design = (phantom.gradient(points)[:, :, None] * centred[:, None, :]).reshape(len(points), 12)
    design = np.concatenate([design, phantom.curvature(points)], 1)
    motion = np.linalg.lstsq(design, residual, rcond=None)[0][:12].reshape(3, 4)
    return float(np.linalg.norm(centred @ motion.T, axis=1).max())


def _world(affine: Floats, shape: tuple[int, ...]) -> Floats:
    """RAS+ mm [I, J, K, 3] of every voxel."""
    index = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), -1)
    return np.asarray(index @ affine[:3, :3].T + affine[:3, 3])
