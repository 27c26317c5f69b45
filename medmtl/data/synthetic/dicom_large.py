"""CT series of the usual size, fast to write, for measuring throughput: their noise compresses as a scanner's does."""

from functools import partial
from pathlib import Path

import numpy as np

from medmtl.data.synthetic.dicom_header import Series, numbers
from medmtl.data.synthetic.dicom_phantom import Grid
from medmtl.data.synthetic.dicom_truth import Array, Expected, Truth
from medmtl.data.synthetic.dicom_write import save

_NOISE_HU, _BODIES = 12.0, 24


def write_ct_series(out: Path, *, slices: int = 60, size: int = 512, seed: int = 0, number: int = 1) -> Truth:
    """Write an axial CT of ``slices`` x ``size`` x ``size`` into ``out``: ellipsoids in air, with noise.

    About 10 ms a slice of 512 x 512. ``seed`` draws the body, ``number`` is the series' number within its study. The
    truth's voxels are computed when asked for; its ``value`` (of another, analytic body) does not describe them.
    """
    grid = Grid(size, size, tuple(2.5 * k for k in range(slices)), (0.7, 0.7))
    series = Series("large", seed, grid, number=number)
    frame = partial(_slice, seed=(seed, number), size=size, slices=slices)
    ds = series.header()
    ds.ImageOrientationPatient = numbers(grid.axes.T[:2].ravel())
    for k in range(slices):
        ds.SOPInstanceUID, ds.InstanceNumber = series.instance_uid(k), k + 1
        ds.ImagePositionPatient = numbers(grid.position(k))
        ds.SliceLocation = numbers([grid.offsets_mm[k]])[0]
        series.put_pixels(ds, frame(k).astype(np.uint16))
        save(out / f"IM{k + 1:04d}.dcm", ds)
    volume = Expected("large", (size, size, slices), grid.affine(), partial(_volume, frame, slices), 0.01)
    return Truth((volume,), identifiers=series.identifiers())


def _slice(k: int, *, seed: tuple[int, int], size: int, slices: int) -> Array:
    """Stored values [rows, columns] of slice ``k``, HU + 1024: sums of products of one-dimensional bells are cheap."""
    rng = np.random.default_rng(seed)
    places, widths = rng.uniform(0.25, 0.75, (3, _BODIES)), rng.uniform(0.03, 0.12, (3, _BODIES))
    heights = rng.uniform(-60, 240, _BODIES)
    axis = np.linspace(0, 1, size)[:, None]
    across, along = (np.exp(-0.5 * ((axis - places[i]) / widths[i]) ** 2) for i in (0, 1))
    depth = np.exp(-0.5 * (((k + 0.5) / slices - places[2]) / widths[2]) ** 2)
    noise = np.roll(rng.normal(0, _NOISE_HU, size * size), 7919 * k).reshape(size, size)
    inside = np.hypot((axis - 0.5) / 0.42, (axis.T - 0.5) / 0.36) < 1
    return np.asarray(
        (1024 + np.where(inside, (across * (heights * depth)) @ along.T + noise, -1000 + 0.3 * noise)).round()
    )


def _volume(frame: partial[Array], slices: int) -> Array:
    return np.stack([frame(k)[::-1].T.astype(np.float64) - 1024 for k in range(slices)], -1)
