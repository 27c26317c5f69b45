"""Kinds of phantom folders: where the slices lie, in which order they come, and what of that a header leaves out."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset
from pydicom.valuerep import DSfloat

from medmtl.data.synthetic.dicom_header import Series, numbers
from medmtl.data.synthetic.dicom_phantom import Grid, Phantom, turned
from medmtl.data.synthetic.dicom_truth import Kind, Truth
from medmtl.data.synthetic.dicom_write import lax, save, save_all

EVEN = tuple(2.5 * k for k in range(12))
SAGITTAL = ((0, 1, 0), (0, 0, -1), (-1, 0, 0))  # columns run to the back, rows to the feet
CORONAL = ((1, 0, 0), (0, 0, -1), (0, 1, 0))
PRONE = ((-1, 0, 0), (0, -1, 0), (0, 0, 1))
HEAD_DOWN = ((1, 0, 0), (0, -1, 0), (0, 0, -1))  # the normal points to the feet
Edit = Callable[[Dataset, int], None]


def _plain(grid: Grid, modality: str, kind: str, out: Path, seed: int) -> Truth:
    series = make(kind, seed, grid, modality)
    save_all(out, series.frames())
    return Truth((series.expected(),), phantom=series.phantom, identifiers=series.identifiers())


def make(kind: str, seed: int, grid: Grid = Grid(), modality: str = "CT") -> Series:
    """The usual series: CT as unsigned 12 bits below an intercept of -1024, MR without a rescale."""
    if modality == "CT":
        return Series(kind, seed, grid, Phantom(seed))
    return Series(kind, seed, grid, Phantom(seed, 1.0, 1100.0), modality, intercept=0.0, rescale=False)


def edited(edit: Edit, kind: str, out: Path, seed: int, *, codes: tuple[str, ...] = (), modality: str = "CT") -> Truth:
    """A plain series whose headers were changed by ``edit(ds, k)``.

    Where ``codes`` say that it must be refused it is oblique, so that no guess at what is missing can be right.
    """
    series = make(kind, seed, Grid(direction=turned(20)) if codes else Grid(), modality)
    with lax():
        for k, ds in enumerate(series.frames()):
            edit(ds, k)
            save(out / f"IM{k + 1:04d}.dcm", ds)
    return Truth(() if codes else (series.expected(),), codes, phantom=series.phantom, identifiers=series.identifiers())


def _named(order: Callable[[int], "list[int]"], kind: str, out: Path, seed: int) -> Truth:
    """File names in another order than the slices."""
    series = make(kind, seed)
    for place, ds in zip(order(len(series.grid)), series.frames(), strict=True):
        save(out / f"IM{place:04d}.dcm", ds)
    return Truth((series.expected(),), phantom=series.phantom, identifiers=series.identifiers())


def shuffled(count: int) -> list[int]:
    """A fixed order that is neither ascending nor descending."""
    return [int(i) for i in np.random.default_rng(7).permutation(count)]


def _gap(lost: int, kind: str, out: Path, seed: int) -> Truth:
    """One slice is missing, though its neighbours say (ImagesInAcquisition, InstanceNumber) that it was there."""
    series = make(kind, seed)
    for k, ds in enumerate(series.frames()):
        if k != lost:
            save(out / f"IM{k + 1:04d}.dcm", ds)
    truth = Truth(phantom=series.phantom, identifiers=series.identifiers())
    if lost < len(series.grid) - 1:
        return replace(truth, codes=("E-DCM-GAP",))
    rest = replace(series, grid=series.grid.part(range(lost)))
    return replace(truth, volumes=(rest.expected(),), notes=("W-DCM-ENDS",), warn=True)


def _refused_grid(grid: Grid, codes: tuple[str, ...], kind: str, out: Path, seed: int) -> Truth:
    """A stack that no single upright grid describes: it must not be taken for one."""
    series = make(kind, seed, grid)
    save_all(out, series.frames())
    return Truth((), codes, phantom=series.phantom, identifiers=series.identifiers())


def _alternate(kind: str, out: Path, seed: int) -> Truth:
    """Every other slice is missing: what is left is even, and only numbers in the headers tell."""
    series = make(kind, seed, Grid(offsets_mm=EVEN[:11]))
    save_all(out, series.frames()[::2])
    rest = replace(series, grid=replace(series.grid, offsets_mm=EVEN[:11:2]))
    notes = ("W-DCM-ENDS", "W-DCM-SLICE-SPACING")
    return Truth((rest.expected(),), (), notes, warn=True, phantom=series.phantom, identifiers=series.identifiers())


def _one_moved(moved_mm: tuple[float, float, float], codes: tuple[str, ...], kind: str, out: Path, seed: int) -> Truth:
    """One slice lies elsewhere, as its header and its pixels say alike."""
    series = make(kind, seed)
    frames = series.frames()
    centre = tuple(c + m for c, m in zip(series.grid.centre, moved_mm, strict=True))
    frames[5] = replace(series, grid=replace(series.grid, centre=centre)).frame(5)
    save_all(out, frames)
    return Truth((), codes, phantom=series.phantom, identifiers=series.identifiers())


def _tilted(kind: str, out: Path, seed: int) -> Truth:
    """Each slice 0.67 mm further along its own plane. A sheared affine is as right as de-sheared voxels."""
    series = make(kind, seed, Grid(shear=float(np.tan(np.radians(15)))))
    frames = series.frames()
    for ds in frames:
        ds.GantryDetectorTilt = "15"
    save_all(out, frames)
    return Truth(
        (series.expected(),), ("E-DCM-TILT",), either=True, phantom=series.phantom, identifiers=series.identifiers()
    )


def _long_strings(ds: Dataset, k: int) -> None:
    """Decimal strings of up to 22 characters, as some scanners write them; DICOM allows 16."""
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
        values = [float(value) for value in ds[keyword].value]
        ds[keyword].value = [DSfloat(f"{value:.17f}", validation_mode=0) for value in values]


def _drop(keyword: str) -> Edit:
    return lambda ds, k: ds.__delattr__(keyword)


def _put(**values: object) -> Edit:
    def edit(ds: Dataset, k: int) -> None:
        for keyword, value in values.items():
            setattr(ds, keyword, value)

    return edit


def _instances_shuffled(ds: Dataset, k: int) -> None:
    ds.InstanceNumber = shuffled(12)[k] + 1


def _one_place(ds: Dataset, k: int) -> None:
    ds.ImagePositionPatient = ["1", "2", "3"]


def _uneven() -> tuple[float, ...]:
    jitter = np.random.default_rng(3).uniform(-0.0125, 0.0125, 12)  # 0.5 % of 2.5 mm
    return tuple(float(offset) for offset in np.array(EVEN) + jitter * (np.arange(12) % 11 > 0))


_GRIDS: dict[str, tuple[str, Grid, str]] = {
    "axial": ("nothing: a regular axial CT", Grid(), "CT"),
    "head-down": ("slice normal towards the feet", Grid(direction=HEAD_DOWN), "CT"),
    "prone": ("rows to the right, columns to the front", Grid(direction=PRONE), "CT"),
    "sagittal": ("sagittal MR", Grid(direction=SAGITTAL), "MR"),
    "coronal": ("coronal MR", Grid(direction=CORONAL), "MR"),
    "oblique": ("turned by 20 degrees about x", Grid(direction=turned(20)), "CT"),
    "double-oblique": (
        "turned about all three axes, pixels 0.6 x 1.1 x 3.3 mm",
        Grid(direction=turned(-17, 23, 31), spacing_mm=(0.6, 1.1), offsets_mm=tuple(3.3 * k for k in range(10))),
        "MR",
    ),
    "uneven-slightly": ("slices up to 0.5 % off their places", Grid(offsets_mm=_uneven()), "CT"),
}
_EDITS: dict[str, tuple[str, Edit, tuple[str, ...]]] = {
    "instances-shuffled": ("InstanceNumber in no order", _instances_shuffled, ()),
    "instances-one": ("InstanceNumber 1 in every slice", _put(InstanceNumber=1), ()),
    "ds-long": ("decimal strings of more than 16 characters", _long_strings, ()),
    "window-multi": ("two windows in each slice", _put(WindowCenter=["40", "400"], WindowWidth=["80", "2000"]), ()),
    "spacing-missing": ("no PixelSpacing", _drop("PixelSpacing"), ("E-DCM-SPACING",)),
    "spacing-zero": ("PixelSpacing 0\\0", _put(PixelSpacing=["0", "0"]), ("E-DCM-SPACING",)),
    "spacing-negative": ("PixelSpacing -0.9\\0.8", _put(PixelSpacing=["-0.9", "0.8"]), ("E-DCM-SPACING",)),
    "spacing-nan": ("PixelSpacing NaN", _put(PixelSpacing=["NaN", "NaN"]), ("E-DCM-SPACING",)),
    "position-missing": ("no ImagePositionPatient", _drop("ImagePositionPatient"), ("E-DCM-GEOMETRY",)),
    "position-one": ("one ImagePositionPatient for all slices", _one_place, ("E-DCM-POSITION",)),
    "orientation-missing": ("no ImageOrientationPatient", _drop("ImageOrientationPatient"), ("E-DCM-GEOMETRY",)),
    "orientation-zero": (
        "ImageOrientationPatient of zeros",
        _put(ImageOrientationPatient=numbers([0.0] * 6)),
        ("E-DCM-GEOMETRY",),
    ),
}
_IRREGULAR = tuple(2.5 * min(k, 6) + 3.2 * max(k - 6, 0) for k in range(12))

KINDS: dict[str, Kind] = {
    **{name: Kind(what, partial(_plain, grid, modality, name)) for name, (what, grid, modality) in _GRIDS.items()},
    "names-reversed": Kind(
        "file names against the order of slices", partial(_named, lambda n: list(range(n))[::-1], "names-reversed")
    ),
    "names-shuffled": Kind("file names in no order", partial(_named, shuffled, "names-shuffled")),
    **{name: Kind(what, partial(edited, edit, name, codes=codes)) for name, (what, edit, codes) in _EDITS.items()},
    "gap-middle": Kind("a slice is missing in the middle", partial(_gap, 5, "gap-middle")),
    "gap-end": Kind("the last slice is missing; the header counts it", partial(_gap, 11, "gap-end")),
    "gap-alternate": Kind("every other slice is missing", partial(_alternate, "gap-alternate")),
    "one-aside": Kind(
        "one slice 3 mm aside in its plane",
        partial(_one_moved, (3.0, 0.0, 0.0), ("E-DCM-IRREGULAR", "E-DCM-TILT"), "one-aside"),
    ),
    "one-far": Kind(
        "one slice 60 mm above the others",
        partial(_one_moved, (0.0, 0.0, 60.0), ("E-DCM-GAP", "E-DCM-IRREGULAR"), "one-far"),
    ),
    "irregular": Kind(
        "steps of 2.5, then of 3.2 mm",
        partial(_refused_grid, Grid(offsets_mm=_IRREGULAR), ("E-DCM-IRREGULAR", "E-DCM-GAP"), "irregular"),
    ),
    "tilt": Kind("gantry tilted by 15 degrees", partial(_tilted, "tilt")),
}
