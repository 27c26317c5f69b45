"""Laws of the DICOM phantoms: the truth is what the files say, and the judge of volumes is not fooled."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from phantoms_made import MAKER, digests, files, read, written
from scipy import ndimage

from medmtl.data.synthetic.dicom import flaws, write_ct_series, write_phantom
from medmtl.data.synthetic.dicom_header import DATES, PEOPLE, SERIAL
from medmtl.data.synthetic.dicom_phantom import Grid, Phantom, turned
from medmtl.data.synthetic.dicom_truth import expected, untrue
from medmtl.errors import UserError


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> MAKER:
    return written(tmp_path_factory.mktemp("phantoms"))


# the phantom


@pytest.mark.parametrize("seed", [0, 1, 1000])
def test_a_tenth_of_a_millimetre_shows_in_every_direction(seed: int) -> None:
    grid, body = Grid(), Phantom(seed)
    points = np.stack([grid.points(k)[::4, ::4] for k in range(12)])
    ways = np.random.default_rng(5).standard_normal((60, 3))
    for way in ways / np.linalg.norm(ways, axis=1, keepdims=True):
        assert np.abs(body.value(points + 0.1 * way) - body.value(points)).max() > 1


def test_the_phantom_has_no_symmetry_and_stays_in_range() -> None:
    centre = np.array([-23.7, 41.3, -118.2])
    steps = np.stack(np.meshgrid(*[np.linspace(-15, 15, 13)] * 3, indexing="ij"), -1)
    value = Phantom().value(centre + steps)
    assert -1000 < value.min() < value.max() < 1500
    for order in ((0, 1, 2), (1, 0, 2), (2, 1, 0), (0, 2, 1), (1, 2, 0), (2, 0, 1)):
        for signs in np.ndindex(2, 2, 2):
            other = Phantom().value(centre + steps[..., order] * np.where(signs, -1, 1))
            assert np.abs(other - value).max() > 100 or (order == (0, 1, 2) and not any(signs))


def test_the_phantom_by_hand() -> None:
    """The formula of the docstring in plain Python, at one point."""
    body, point = Phantom(3, 2.0, 7.0), np.array([-20.0, 44.0, -121.0])
    away = point - np.array([-23.7, 41.3, -118.2])
    raw = 11 * away[0] - 13 * away[1] + 17 * away[2]
    for place, precision, amplitude in zip(*body._blobs, strict=True):
        raw += amplitude * np.exp(-0.5 * (away - place) @ precision @ (away - place))
    assert body.value(point) == pytest.approx(2 * (250 + 1250 * np.tanh(raw / 1250)) + 7)
    numeric = [(body.value(point + e) - body.value(point - e)) / 2e-4 for e in 1e-4 * np.eye(3)]
    np.testing.assert_allclose(body.gradient(point), numeric, rtol=1e-4)


# the files against the truth


@pytest.mark.parametrize(
    "kind", ["axial", "head-down", "prone", "sagittal", "coronal", "oblique", "double-oblique", "tilt"]
)
def test_pixels_lie_where_the_standard_says(made: MAKER, kind: str) -> None:
    """PS3.3 equation C.7.6.2.1-1 for every tenth pixel, without any of the generator's geometry."""
    folder, truth = made(kind)
    images = sorted(read(folder), key=lambda ds: ds.InstanceNumber)
    want = truth.volumes[0]
    assert want.affine is not None
    voxels = want.voxels()
    for k, ds in enumerate(images):
        across, along = np.array(ds.ImageOrientationPatient[:3], float), np.array(ds.ImageOrientationPatient[3:], float)
        between_rows, between_columns = map(float, ds.PixelSpacing)
        shown = ds.pixel_array * float(ds.get("RescaleSlope", 1)) + float(ds.get("RescaleIntercept", 0))
        for row, column in np.ndindex(ds.Rows, ds.Columns):
            if (row * 7 + column) % 10:
                continue
            lps = (
                np.array(ds.ImagePositionPatient, float)
                + across * between_columns * column
                + along * between_rows * row
            )
            ras = lps * (-1, -1, 1)
            assert abs(truth.value(ras) - shown[row, column]) <= 0.5 + 1e-6
            index = (column, ds.Rows - 1 - row, k)
            np.testing.assert_allclose((want.affine @ (*index, 1))[:3], ras, atol=1e-6)
            assert abs(voxels[index] - shown[row, column]) <= want.tolerance


@pytest.mark.parametrize("kind", ["axial", "double-oblique", "big-endian", "jpeg-lossless", "slope-per-slice", "rle"])
def test_simpleitk_sees_the_same_volume(made: MAKER, kind: str) -> None:
    folder, truth = made(kind)
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(SimpleITK.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    lps = np.eye(4)
    lps[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    lps[:3, 3] = image.GetOrigin()
    assert flaws(truth.volumes[0], SimpleITK.GetArrayFromImage(image).T, np.diag([-1, -1, 1, 1]) @ lps) == ""


# identifiers


def test_every_identifier_stands_in_the_files(made: MAKER) -> None:
    for kind in ("axial", "two-patients", "enhanced-mr", "mosaic", "radiograph"):
        folder, truth = made(kind)
        content = b"".join(path.read_bytes() for path in files(folder))
        single = "FrameOfReferenceUID" not in next(iter(read(folder)))
        absent = [text for text in truth.identifiers if text.encode() not in content and not text.startswith("2.25.")]
        assert not absent
        uids = [text for text in truth.identifiers if text.startswith("2.25.")]
        assert sum(uid.encode() in content for uid in uids) >= (3 if single or len(files(folder)) == 1 else len(uids))


def test_every_file_is_full_of_them(made: MAKER) -> None:
    for ds in read(made("axial")[0]):
        written = " ".join(str(element.value) for element in ds.iterall() if element.VR not in ("OW", "SQ"))
        for text in (PEOPLE[0].patient_id, PEOPLE[0].birth, DATES[0], DATES[1], SERIAL, "Fennimorecote"):
            assert text in written
        assert ds.private_block(0x0099, "PHANTOM WORKS")[0x01].value == PEOPLE[0].name


# the judge


@pytest.fixture(scope="module")
def want():
    return expected("one", Grid(direction=turned(12, -8, 30)), Phantom())


def test_axes_in_any_order_are_the_same_volume(want) -> None:
    moved = np.transpose(want.voxels(), (1, 2, 0))[::-1]  # j reversed, k, i
    affine = want.affine @ np.array([[0, 0, 1, 0], [-1, 0, 0, 47], [0, 1, 0, 0], [0, 0, 0, 1]], float)
    assert flaws(want, moved, affine) == ""
    assert flaws(want, moved, want.affine) != ""


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_judge_sees_a_fifth_of_a_millimetre_a_flip_and_one_intensity(want, axis: int) -> None:
    shifted = want.affine.copy()
    shifted[axis, 3] += 0.2
    assert flaws(want, want.voxels(), shifted)
    assert flaws(want, np.flip(want.voxels(), axis), want.affine)
    spot = want.voxels().copy()
    spot[3, 4, 5] += 1
    assert "intensities off by 1" in flaws(want, spot, want.affine)


def test_the_judge_sees_what_is_missing_stretched_or_not_a_number(want) -> None:
    voxels, stretched, hole = want.voxels(), want.affine.copy(), want.voxels().copy()
    stretched[:3, 2] *= 12 / 11
    hole[0, 0, 0] = np.nan
    assert flaws(want, voxels[..., :-1], want.affine)
    assert flaws(want, np.delete(voxels, 5, axis=2), stretched)
    assert "not finite" in flaws(want, hole, want.affine)
    assert flaws(want, voxels, None)
    assert flaws(want, np.stack([voxels, voxels], -1), want.affine)


def test_a_resampled_volume_counts_where_it_is_true(want) -> None:
    """Linear interpolation onto an upright grid of 1 mm; not 0.15 mm aside, however well done, nor half of it."""
    corners = np.array([want.affine[:3] @ (i, j, k, 1) for i in (0, 55) for j in (0, 47) for k in (0, 11)])
    start, size = corners.min(0), np.ceil(np.ptp(corners, axis=0)).astype(int) + 1
    affine, aside = np.eye(4), np.eye(4)
    affine[:3, 3], aside[:3, 3] = start, start + np.array([0.15, 0, 0])
    points = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"), -1) + start
    index = np.moveaxis((points - want.affine[:3, 3]) @ np.linalg.inv(want.affine[:3, :3]).T, -1, 0)
    linear, cubic = (ndimage.map_coordinates(want.voxels(), index, order=n, cval=-1024) for n in (1, 3))
    assert flaws(want, linear, affine) == flaws(want, cubic, affine) == ""
    assert "displaced by 0.1" in flaws(want, cubic, aside)
    assert "of what was acquired" in flaws(want, linear[: size[0] // 2], affine)


def test_untrue_tells_a_true_part_from_a_false_volume(want) -> None:
    voxels = want.voxels()
    assert untrue([Phantom(9), Phantom()], voxels[..., :6], want.affine) == ""
    assert "intensities off" in untrue([Phantom()], voxels[..., ::-1], want.affine)


def test_padding_and_precise_values_have_their_own_rule(want) -> None:
    padding = np.zeros(want.shape, bool)
    padding[:5] = True
    padded = replace(want, padding=padding, floor=-500.0)
    voxels = np.where(padding, -1024.0, want.voxels())
    assert flaws(padded, voxels, want.affine) == ""
    assert "padding as bright as 3000" in flaws(padded, np.where(padding, 3000.0, voxels), want.affine)
    scaled = replace(want, others=((50.0, 0.0),))
    assert flaws(scaled, 50 * want.voxels(), want.affine) == ""
    assert flaws(scaled, 49 * want.voxels(), want.affine)


# the doors


def test_an_unknown_kind_and_a_used_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"E-SYN-KIND.*axial"):
        write_phantom(tmp_path, "axail")
    (tmp_path / "other.txt").write_text("x")
    with pytest.raises(UserError, match="E-SYN-FOLDER"):
        write_phantom(tmp_path, "axial")


def test_a_large_series_is_what_its_truth_says(tmp_path: Path) -> None:
    truth = write_ct_series(tmp_path / "a", slices=4, size=64, seed=2)
    write_ct_series(tmp_path / "b", slices=4, size=64, seed=2)
    write_ct_series(tmp_path / "c", slices=4, size=64, seed=3)
    assert digests(tmp_path / "a") == digests(tmp_path / "b") != digests(tmp_path / "c")
    images = read(tmp_path / "a")
    stacked = np.stack([(ds.pixel_array - 1024.0)[::-1].T for ds in images], -1)
    assert flaws(truth.volumes[0], stacked, truth.volumes[0].affine) == ""
    assert stacked.min() < -900 and stacked.max() > 100
    assert [float(ds.ImagePositionPatient[2]) for ds in images] == pytest.approx([-121.95, -119.45, -116.95, -114.45])
