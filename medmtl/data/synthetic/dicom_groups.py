"""Kinds of phantom folders: several volumes under one roof, and images that get in each other's way."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from pydicom.dataset import Dataset

from medmtl.data.synthetic.dicom_geometry import EVEN, SAGITTAL, make
from medmtl.data.synthetic.dicom_header import PEOPLE, Series, made_uid
from medmtl.data.synthetic.dicom_phantom import Grid, Phantom
from medmtl.data.synthetic.dicom_truth import Kind, Truth
from medmtl.data.synthetic.dicom_write import save, save_all

Tell = Callable[[Dataset, int], None]  # writes into a header which of the volumes (0, 1, ...) it belongs to


def _truth(several: Sequence[Series], **more: object) -> Truth:
    names = tuple(dict.fromkeys(text for one in several for text in one.identifiers()))
    volumes = tuple(one.expected(f"{one.kind}-{n}") for n, one in enumerate(several))
    return Truth(**{"volumes": volumes, "phantom": several[0].phantom, "identifiers": names} | more)  # type: ignore[arg-type]


def _two_series(kind: str, out: Path, seed: int) -> Truth:
    """Two bodies in two series of one study; the files alternate."""
    first = make(kind, seed)
    second = replace(first, number=2, phantom=Phantom(seed + 1000))
    for k, pair in enumerate(zip(first.frames(), second.frames(), strict=True)):
        save(out / f"IM{k:04d}a.dcm", pair[0])
        save(out / f"IM{k:04d}b.dcm", pair[1])
    return _truth((first, second))


def _two_patients(kind: str, out: Path, seed: int) -> Truth:
    """Two people whose slices lie between each other's."""
    first = make(kind, seed)
    grid = replace(first.grid, centre=(23.7, -41.3, -117.0))
    second = replace(first, person=PEOPLE[1], study=2, phantom=Phantom(seed + 1000), grid=grid)
    save_all(out, first.frames(), prefix="A")
    save_all(out, second.frames(), prefix="B")
    return _truth((first, second), notes=("W-DCM-MIXED-PATIENTS",))


def _same_places(
    tell: Tell, phantoms: Sequence[tuple[float, float]], modality: str, kind: str, out: Path, seed: int
) -> Truth:
    """Volumes of one series at the same places, of (scale, offset) each, which only ``tell`` tells apart."""
    base = make(kind, seed, modality=modality)
    several = [
        replace(base, phantom=replace(base.phantom, scale=scale, offset=offset), first=1 + n * len(base.grid))
        for n, (scale, offset) in enumerate(phantoms)
    ]
    for n, one in enumerate(several):
        frames = one.frames()
        for ds in frames:
            tell(ds, n)
        save_all(out, frames, prefix=f"V{n}_")
    return _truth(several)


def _between(tell: Tell, modality: str, kind: str, out: Path, seed: int) -> Truth:
    """Two volumes of one series, the slices of one midway between the other's: together they look evenly spaced."""
    first = make(kind, seed, modality=modality)
    grid = replace(first.grid, centre=(*first.grid.centre[:2], first.grid.centre[2] + 1.25))
    second = replace(first, grid=grid, phantom=replace(first.phantom, scale=0.6), first=13)
    for n, one in enumerate((first, second)):
        frames = one.frames()
        for ds in frames:
            tell(ds, n)
        save_all(out, frames, prefix=f"V{n}_")
    return _truth((first, second), codes=("E-DCM-POSITION", "E-DCM-IRREGULAR"), either=True)


def _two_references(kind: str, out: Path, seed: int) -> Truth:
    """The upper half lies in another frame of reference: nobody knows where that is, seen from the lower half."""
    series = make(kind, seed)
    frames = series.frames()
    for ds in frames[6:]:
        ds.FrameOfReferenceUID = made_uid(kind, seed, "other place")
    save_all(out, frames)
    halves = [replace(series, grid=series.grid.part(kept)) for kept in (range(6), range(6, 12))]
    return _truth(halves, codes=("E-DCM-GEOMETRY", "E-DCM-POSITION"), either=True)


def _nothing_tells(kind: str, out: Path, seed: int) -> Truth:
    """Two images at each place and no header says which belong together."""
    truth = _same_places(lambda ds, n: None, ((1, 1100), (0.6, 900)), "MR", kind, out, seed)
    return replace(truth, volumes=(), codes=("E-DCM-POSITION",))


def _one_again(kind: str, out: Path, seed: int) -> Truth:
    """One slice was acquired again, and came out otherwise."""
    series = make(kind, seed)
    save_all(out, series.frames())
    again = replace(series, phantom=replace(series.phantom, offset=200.0)).frame(5)
    again.SOPInstanceUID, again.InstanceNumber = made_uid(kind, seed, "again"), 13
    save(out / "IM0099.dcm", again)
    return _truth((series,), volumes=(), codes=("E-DCM-POSITION",))


def _copied(kind: str, out: Path, seed: int) -> Truth:
    """The same file under two names."""
    series = make(kind, seed)
    paths = save_all(out, series.frames())
    (out / "IM0005 (1).dcm").write_bytes(paths[4].read_bytes())
    return _truth((series,), notes=("W-DCM-DUPLICATE",))


def _one_uid_twice(kind: str, out: Path, seed: int) -> Truth:
    """Two files of one SOP Instance UID with different pixels: one of them lies, and nobody knows which."""
    series = make(kind, seed)
    save_all(out, series.frames())
    save(out / "IM0099.dcm", replace(series, phantom=replace(series.phantom, offset=200.0)).frame(5))
    return _truth((series,), volumes=(), codes=("E-DCM-DUPLICATE", "E-DCM-GAP", "E-DCM-INCOMPLETE"))


def _localizer(kind: str, out: Path, seed: int) -> Truth:
    """A sagittal scout with the series' UID; the axial volume is whole without it."""
    series = make(kind, seed)
    scout = replace(series, grid=Grid(48, 40, (0.0,), (1.2, 1.2), SAGITTAL), first=13)
    picture = scout.frame(0)
    picture.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    save_all(out, [picture, *series.frames()])
    volumes = (series.expected("axial"), replace(scout.expected("scout"), optional=True))
    return _truth((series, scout), volumes=volumes)


def _two_sizes(kind: str, out: Path, seed: int) -> Truth:
    """Two matrices in one series, each of them a whole volume."""
    first = make(kind, seed)
    phantom = replace(first.phantom, scale=0.9)
    second = replace(first, grid=Grid(40, 36, EVEN[:10], (1.1, 1.3)), phantom=phantom, first=13)
    save_all(out, [*first.frames(), *second.frames()])
    return _truth((first, second))


def _odd_one(unlike: dict[str, object], kind: str, out: Path, seed: int) -> Truth:
    """One slice in the middle is unlike the others: without it there is a gap, with it no volume."""
    series = make(kind, seed)
    place = replace(series.grid, offsets_mm=(0.0,), centre=series.grid.centre_of(5), **unlike)  # type: ignore[arg-type]
    odd = replace(series, grid=place)
    picture = replace(odd, first=6).frame(0)
    save_all(out, [*series.frames()[:5], picture, *series.frames()[6:]])
    alone = replace(odd.expected("odd"), optional=True)
    return _truth((series,), volumes=(alone,), codes=("E-DCM-GAP",))


def _echo(ds: Dataset, n: int) -> None:
    ds.EchoTime, ds.EchoNumbers = ("30", "80")[n], str(n + 1)


def _kernel(ds: Dataset, n: int) -> None:
    ds.ConvolutionKernel = ("H30", "H70")[n]


def _time(ds: Dataset, n: int) -> None:
    ds.TemporalPositionIdentifier, ds.NumberOfTemporalPositions = str(n + 1), "3"
    ds.AcquisitionNumber, ds.AcquisitionTime = str(n + 1), f"1012{n:02d}"
    ds.TriggerTime = str(1500 * n)


def _by_clock(kind: str, out: Path, seed: int) -> Truth:
    """Only clocks tell two volumes apart, the second after the first: to be told apart, or refused."""

    def tell(ds: Dataset, n: int) -> None:
        seconds = 20 * n + int(ds.InstanceNumber) % 12
        ds.AcquisitionTime = ds.ContentTime = f"1011{seconds:02d}.5"

    truth = _same_places(tell, ((1, 1100), (0.6, 900)), "MR", kind, out, seed)
    return replace(truth, codes=("E-DCM-POSITION",), either=True)


def _crossed_clocks(kind: str, out: Path, seed: int) -> Truth:
    """Two images at each place, now one and now the other first: no order of the clock is that of the volumes."""

    def tell(ds: Dataset, n: int) -> None:
        place = (int(ds.InstanceNumber) - 1) % 12
        ds.AcquisitionTime = ds.ContentTime = f"1011{2 * place + (n + place // 3) % 2:02d}.5"

    truth = _same_places(tell, ((1, 1100), (0.6, 900)), "MR", kind, out, seed)
    return replace(truth, volumes=(), codes=("E-DCM-POSITION",))


def _acquisition(ds: Dataset, n: int) -> None:
    ds.AcquisitionNumber = str(n + 1)


def _b_value(ds: Dataset, n: int) -> None:
    ds.DiffusionBValue = 1000.0 * n


def _phase(ds: Dataset, n: int) -> None:
    ds.ImageType = ["ORIGINAL", "PRIMARY", "MP"[n], "ND"]


_TOLD: dict[str, tuple[str, Tell, tuple[tuple[float, float], ...], str]] = {
    "two-echoes": ("two echoes in one series", _echo, ((1, 1100), (0.6, 900)), "MR"),
    "two-b-values": ("two b-values in one series", _b_value, ((1, 1100), (0.5, 800)), "MR"),
    "two-acquisitions": ("two AcquisitionNumbers in one series", _acquisition, ((1, 0), (0.8, 100)), "CT"),
    "two-parts": ("magnitude and phase in one series", _phase, ((1, 1100), (-0.9, 1200)), "MR"),
    "three-times": ("three time points in one series", _time, ((1, 1100), (0.9, 1150), (0.7, 1250)), "MR"),
}

KINDS: dict[str, Kind] = {
    "two-series": Kind("two series in one folder", partial(_two_series, "two-series")),
    "two-patients": Kind("two patients in one folder", partial(_two_patients, "two-patients")),
    **{
        name: Kind(what, partial(_same_places, tell, phantoms, modality, name))
        for name, (what, tell, phantoms, modality) in _TOLD.items()
    },
    "between-echoes": Kind("two echoes, midway between each other", partial(_between, _echo, "MR", "between-echoes")),
    "between-kernels": Kind(
        "two kernels, midway between each other", partial(_between, _kernel, "CT", "between-kernels")
    ),
    "two-references": Kind("two frames of reference in one series", partial(_two_references, "two-references")),
    "nothing-tells": Kind("two images at each place, alike in every header", partial(_nothing_tells, "nothing-tells")),
    "clock-tells": Kind("two images at each place, one volume after the other", partial(_by_clock, "clock-tells")),
    "clock-crossed": Kind("two images at each place, acquired in turns", partial(_crossed_clocks, "clock-crossed")),
    "one-again": Kind("one slice twice, with other pixels", partial(_one_again, "one-again")),
    "copied": Kind("one file under two names", partial(_copied, "copied")),
    "one-uid-twice": Kind("one SOP Instance UID, two contents", partial(_one_uid_twice, "one-uid-twice")),
    "localizer": Kind("a localizer inside the series", partial(_localizer, "localizer")),
    "two-sizes": Kind("two matrix sizes in one series", partial(_two_sizes, "two-sizes")),
    "odd-size": Kind("one slice of another matrix size", partial(_odd_one, {"columns": 40, "rows": 36}, "odd-size")),
    "odd-spacing": Kind(
        "one slice of another PixelSpacing", partial(_odd_one, {"spacing_mm": (0.9, 1.0)}, "odd-spacing")
    ),
}
