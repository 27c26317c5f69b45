"""Plans: which frames make a volume, where it lies, and what is refused; all against geometry known beforehand."""

import itertools
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from dicom_made import AXIAL, change, codes, ct, item, loaded, notes, pattern, planned, write, write_all

from medmtl.io.dicom.geometry import axes_of, spacing_of
from medmtl.io.dicom.header import Frame, Header, Pixels, read_header
from medmtl.io.dicom.load import load
from medmtl.io.dicom.series import Policy, plan

COUNT = 6


def stack(count=COUNT, **changes):
    return [ct(number=n, **changes) for n in range(count)]


def oblique(angle=0.3):
    """Orthonormal directions of a row and a column, turned about two axes."""
    c, s = math.cos(angle), math.sin(angle)
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    return turn[:, 0], turn[:, 1], turn[:, 2]


def text(vector):
    return [f"{value:.10f}" for value in vector]


def test_slices_are_sorted_by_position_whatever_they_are_called(tmp_path):
    slices = stack()
    truth = loaded(tmp_path / "sorted", slices).array
    order = [3, 0, 5, 1, 4, 2]
    shuffled = [change(slices[n], InstanceNumber=number + 1) for number, n in enumerate(order)]
    np.testing.assert_array_equal(loaded(tmp_path / "shuffled", shuffled).array, truth)
    same = [change(each, InstanceNumber=1) for each in slices]
    np.testing.assert_array_equal(loaded(tmp_path / "same", same).array, truth)


def test_the_plan_does_not_depend_on_the_order_of_headers(tmp_path):
    slices = [*stack(3), *stack(3, series="1.2.4", EchoTime=5)]
    headers = write_all(tmp_path, slices)
    plans = [plan(order) for order in itertools.islice(itertools.permutations(headers), 0, 720, 97)]
    assert len({tuple((volume.key, volume.shape) for volume in found.volumes) for found in plans}) == 1


@pytest.mark.parametrize("angle", [0, 0.3, -1.1, 2.5])
@pytest.mark.parametrize("descending", [False, True])
def test_every_pixel_lies_where_the_standard_says(tmp_path, angle, descending):
    """PS3.3 C.7.6.2.1.1: P = S + column * X * Δcolumn + row * Y * Δrow, here for every pixel of every slice."""
    row, column, normal = oblique(angle)
    slices = []
    for n in range(COUNT):
        step = (COUNT - n if descending else n) * 1.7
        place = np.array([12.0, -7, 31]) + step * normal
        slices.append(ct(number=n, ImagePositionPatient=text(place), ImageOrientationPatient=text([*row, *column])))
    volume = loaded(tmp_path, slices)
    assert volume.affine is not None
    to_index = np.linalg.inv(volume.affine)
    for ds in slices:
        pixels = ds.pixel_array
        for r, c in np.ndindex(pixels.shape):
            lps = np.array(ds.ImagePositionPatient, float) + row * 0.7 * c + column * 0.8 * r
            ijk = to_index @ [-lps[0], -lps[1], lps[2], 1]
            index = tuple(np.round(ijk[:3]).astype(int))
            np.testing.assert_allclose(ijk[:3], index, atol=1e-4)
            assert volume.array[index] == int(pixels[r, c]) - 1024
    np.testing.assert_allclose(volume.spacing, (0.7, 0.8, 1.7), atol=1e-6)


def test_two_series_and_two_patients_stay_apart(tmp_path):
    found = planned(tmp_path / "a", [*stack(3), *stack(4, series="1.2.4")])
    assert sorted(volume.shape[2] for volume in found.volumes) == [3, 4]
    assert not any(volume.notes for volume in found.volumes)
    mixed = planned(tmp_path / "b", [*stack(3), *stack(4, series="1.2.4", PatientID="ID-78")])
    assert [notes(volume) for volume in mixed.volumes] == [{"W-DCM-MIXED-PATIENTS"}] * 2


def test_one_series_uid_of_two_patients_is_two_volumes(tmp_path):
    others = [change(ds, PatientID="ID-78", SOPInstanceUID=f"1.5.{n}") for n, ds in enumerate(stack(3))]
    found = planned(tmp_path, [*stack(3), *others])
    assert [volume.shape[2] for volume in found.volumes] == [3, 3]


@pytest.mark.parametrize("missing", [1, 3])
def test_a_missing_slice_is_a_gap_at_its_place(tmp_path, missing):
    found = planned(tmp_path, [ds for n, ds in enumerate(stack()) if n != missing])
    assert codes(found) == ["E-DCM-GAP"] and not found.volumes
    assert f"at {2.5 * missing:g} mm" in found.refused[0].error.what


def test_a_gap_is_interpolated_only_if_allowed(tmp_path):
    ramps = [ct(np.full((6, 5), 100 * n, np.uint16), number=n) for n in range(COUNT)]
    volume = loaded(tmp_path, [ds for n, ds in enumerate(ramps) if n not in (2, 3)], Policy(gap="resample"))
    np.testing.assert_array_equal(volume.array, np.broadcast_to(100 * np.arange(COUNT) - 1024, (5, 6, COUNT)))
    assert "R-DCM-RESAMPLED" in notes(volume)
    assert "5, 7.5 mm" in next(note.what for note in volume.notes if note.code == "R-DCM-RESAMPLED")


def test_uneven_slices(tmp_path):
    places = [0, 2.5, 5, 8.2, 11.4]
    slices = [
        change(ct(np.full((6, 5), round(100 * z), np.uint16), number=n), ImagePositionPatient=[0, 0, z])
        for n, z in enumerate(places)
    ]
    assert codes(planned(tmp_path / "a", slices)) == ["E-DCM-IRREGULAR"]
    volume = loaded(tmp_path / "b", slices, Policy(irregular="resample"))
    assert volume.affine is not None
    heights = volume.affine[2, 3] + volume.affine[2, 2] * np.arange(volume.array.shape[2])
    assert (heights[0], heights[-1]) == pytest.approx((0, 11.4))
    np.testing.assert_allclose(volume.array[2, 2], 100 * heights - 1024, atol=0.5)


@pytest.mark.parametrize(
    ("depths", "even", "missing"),
    [
        ([0, 2.5, 5.0, 7.5], True, ()),
        ([0, 2.52, 4.98, 7.5], True, ()),  # within 0.05 mm
        ([0, 2.5, 5.0, 7.7], False, ()),
        ([0, 2.5, 7.5, 10], False, (5.0,)),
        ([0, 2.5, 10], False, (5.0, 7.5)),
        ([0, 10.0, 20.09, 30.0], True, ()),  # 1 % of 10 mm
        ([0, 0.04, 0.12, 0.16], False, (0.08,)),  # 0.05 mm is more than a slice of a micro-CT
        ([0, 0.04, 0.08, 0.12], True, ()),
        ([float(0.985 * n + 0.0006 * n * n) for n in range(60)], False, ()),  # each step is even, the stack drifts
    ],
)
def test_spacing(depths, even, missing):
    found = spacing_of(np.array(depths, float), Policy())
    assert found.even == even
    assert found.missing_mm == pytest.approx(missing)


def tilted(angle_deg=15.0, count=COUNT):
    """Slices whose positions move along z while their normal leans: a tilted gantry."""
    t = math.radians(angle_deg)
    orientation = [1, 0, 0, 0, math.cos(t), -math.sin(t)]
    return [
        ct(
            pattern(20, 18, seed=n),
            number=n,
            ImageOrientationPatient=text(orientation),
            ImagePositionPatient=[3, 4, 2.5 * n],
        )
        for n in range(count)
    ]


def test_a_tilted_gantry_is_refused_with_its_angle(tmp_path):
    found = planned(tmp_path, tilted())
    assert codes(found) == ["E-DCM-TILT"] and "15.00 degrees" in found.refused[0].error.what


def test_a_tilt_that_is_kept_is_a_sheared_affine(tmp_path):
    volume = loaded(tmp_path, tilted(), Policy(tilt="keep"))
    assert "W-DCM-TILT" in notes(volume) and volume.affine is not None
    np.testing.assert_allclose(volume.affine[:3, 2], [0, 0, 2.5], atol=1e-9)
    np.testing.assert_array_equal(volume.array[:, :, 2], pattern(20, 18, seed=2)[::-1].T.astype(int) - 1024)


def test_a_desheared_volume_holds_the_interpolated_truth(tmp_path):
    """On a linear field every voxel between acquired ones must hold the field at its own place, within rounding."""
    slices = []
    field = np.array([3.0, 4.0, 10.0])
    for ds in tilted():
        place, orientation = np.array(ds.ImagePositionPatient, float), np.array(ds.ImageOrientationPatient, float)
        r, c = np.indices((20, 18))[..., None]
        points = place + c * 0.7 * orientation[:3] + r * 0.8 * orientation[3:]
        slices.append(change(ds, PixelData=np.round(points @ field + 1500).astype(np.uint16).tobytes()))
    volume = loaded(tmp_path, slices, Policy(tilt="resample"))
    assert "R-DCM-DESHEARED" in notes(volume) and volume.affine is not None
    axes = volume.affine[:3, :3] / np.linalg.norm(volume.affine[:3, :3], axis=0)
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-9)
    index = np.stack(np.meshgrid(*map(np.arange, volume.array.shape), indexing="ij"), -1)
    ras = index @ volume.affine[:3, :3].T + volume.affine[:3, 3]
    truth = (ras * [-1, -1, 1]) @ field + 1500 - 1024
    real = volume.array > -1024
    assert real.mean() > 0.7
    np.testing.assert_allclose(volume.array[real], truth[real], atol=1.01)
    assert real.sum() >= 0.9 * COUNT * 19 * 18, "no acquired voxel but the border is lost"


def test_a_tiny_lean_is_rounding_not_a_tilt(tmp_path):
    slices = [change(ds, ImagePositionPatient=[0, 0.002 * n, 2.5 * n]) for n, ds in enumerate(stack())]
    (volume,) = planned(tmp_path, slices).volumes
    assert not volume.notes


def test_a_slice_shifted_sideways_is_refused(tmp_path):
    slices = stack()
    slices[2].ImagePositionPatient = [-8, -20, 5]
    assert codes(planned(tmp_path, slices)) == ["E-DCM-IRREGULAR"]


def test_identical_copies_count_once(tmp_path):
    slices = stack()
    write(tmp_path / "copy", slices[2])
    found = planned(tmp_path / "b", slices)
    headers = [header for volume in found.volumes for header in volume.headers]
    found = plan([*headers, read_header(tmp_path / "copy")])
    (volume,) = found.volumes
    assert volume.shape[2] == COUNT and notes(volume) == {"W-DCM-DUPLICATE"}
    assert [ignored.kind for ignored in found.ignored] == ["duplicate"]


def test_one_uid_with_two_contents_is_refused_with_its_stack(tmp_path):
    other = ct(pattern(seed=99), number=2)
    found = planned(tmp_path, [*stack(), other])
    assert sorted(codes(found)) == ["E-DCM-DUPLICATE", "E-DCM-INCOMPLETE"] and not found.volumes
    assert len(next(r for r in found.refused if r.error.code == "E-DCM-DUPLICATE").headers) == 2


def twice(**of_second):
    """A stack, and a second one at the same positions."""
    second = [ct(pattern(seed=50 + n), number=n, InstanceNumber=COUNT + n + 1) for n in range(COUNT)]
    return [*stack(), *(change(ds, SOPInstanceUID=f"1.4.{n}", **of_second) for n, ds in enumerate(second))]


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("EchoTime", 30), ("AcquisitionNumber", 2), ("TemporalPositionIdentifier", 2), ("DiffusionBValue", 1000.0),
        ("ImageType", ["DERIVED", "PRIMARY", "AXIAL"]), ("ConvolutionKernel", "B70"), ("TriggerTime", 12.5),
        ("AcquisitionTime", "101010"), ("FrameReferenceTime", 5),
    ],
)  # fmt: skip
def test_frames_at_one_position_are_told_apart(tmp_path, keyword, value):
    found = planned(tmp_path, twice(**{keyword: value}))
    assert not found.refused and [volume.shape for volume in found.volumes] == [(5, 6, COUNT)] * 2
    arrays = {int(load(volume).array[0, -1, 0]): load(volume).array for volume in found.volumes}
    for seed in (0, 50):
        array = arrays[int(pattern(seed=seed)[0, 0]) - 1024]
        for n in range(COUNT):
            np.testing.assert_array_equal(array[:, :, n], pattern(seed=seed + n)[::-1].T.astype(int) - 1024)


@pytest.mark.parametrize("contrast", [{"EchoTime": 30}, {"ConvolutionKernel": "B70"}, {"DiffusionBValue": 1000.0}])
def test_a_second_contrast_between_the_slices_of_the_first(tmp_path, contrast):
    """No two frames share a position, and yet these are two volumes."""
    slices = twice(**contrast)
    for n, ds in enumerate(slices[COUNT:]):
        ds.ImagePositionPatient = [-10, -20, 2.5 * n + 1.25]
    found = planned(tmp_path, slices)
    assert [volume.shape[2] for volume in found.volumes] == [COUNT, COUNT]
    assert {volume.spacing[2] for volume in found.volumes if volume.spacing} == {2.5}


def test_a_contrast_that_wanders_from_slice_to_slice_is_one_volume(tmp_path):
    slices = [change(ds, EchoTime=30 + 0.01 * n) for n, ds in enumerate(stack())]
    assert [volume.shape[2] for volume in planned(tmp_path, slices).volumes] == [COUNT]


def test_frames_of_reference(tmp_path):
    halves = [change(ds, FrameOfReferenceUID=f"1.9.{n // 3 + 1}") for n, ds in enumerate(stack())]
    assert [volume.shape[2] for volume in planned(tmp_path / "a", halves).volumes] == [3, 3]
    each = [change(ds, FrameOfReferenceUID=f"1.9.{n + 1}") for n, ds in enumerate(stack())]
    (volume,) = planned(tmp_path / "b", each).volumes
    assert volume.shape[2] == COUNT and notes(volume) == {"W-DCM-REFERENCE"}


def test_frames_that_nothing_tells_apart_are_refused(tmp_path):
    found = planned(tmp_path, twice())
    assert codes(found) == ["E-DCM-POSITION"] and not found.volumes


def test_a_part_of_a_second_stack_is_refused_and_the_whole_one_kept(tmp_path):
    found = planned(tmp_path, twice(EchoTime=30)[:-2])
    assert codes(found) == ["E-DCM-POSITION"]
    assert [volume.shape[2] for volume in found.volumes] == [COUNT]


def test_halves_that_overlap_are_refused(tmp_path):
    slices = [
        *stack(4, AcquisitionNumber=1),
        *(change(ct(number=n, AcquisitionNumber=2), SOPInstanceUID=f"1.6.{n}") for n in range(3, 6)),
    ]
    assert codes(planned(tmp_path, slices)) == ["E-DCM-POSITION"]


def clocked(second):
    """Two stacks whose slices differ in nothing but the second of their acquisition."""
    slices = twice()
    for n, ds in enumerate(slices):
        ds.AcquisitionTime = f"1010{second(n % COUNT, n // COUNT):02d}"
    return slices


def test_clocks_separate_what_follows_in_time(tmp_path):
    found = planned(tmp_path, clocked(lambda k, t: k + 20 * t))
    assert [volume.split for volume in found.volumes] == [(("Time", 1),), (("Time", 2),)]
    np.testing.assert_array_equal(load(found.volumes[1]).array[:, :, 0], pattern(seed=50)[::-1].T.astype(int) - 1024)


def test_clocks_that_cross_separate_nothing(tmp_path):
    """Two reconstructions, written in any order: ranked slice by slice they would be mixed."""
    found = planned(tmp_path, clocked(lambda k, t: 2 * k + (t + k) % 2))
    assert codes(found) == ["E-DCM-POSITION"] and not found.volumes


def test_no_split_tells_the_date(tmp_path):
    found = planned(tmp_path, clocked(lambda k, t: k + 20 * t))
    assert all(value in (1, 2) for volume in found.volumes for _, value in volume.split)


def test_time_points_as_one_image(tmp_path):
    slices = twice(TemporalPositionIdentifier=2, AcquisitionTime="101002.5")
    for ds in slices[:COUNT]:
        change(ds, TemporalPositionIdentifier=1, AcquisitionTime="101000")
    volume = loaded(tmp_path, slices, Policy(time="stack"))
    assert volume.array.shape == (5, 6, COUNT, 2) and volume.time_step_s == 2.5
    assert volume.array.flags.f_contiguous
    for t, seed in enumerate((0, 50)):
        np.testing.assert_array_equal(volume.array[:, :, 3, t], pattern(seed=seed + 3)[::-1].T.astype(int) - 1024)


def test_echoes_are_never_stacked_as_time(tmp_path):
    found = planned(tmp_path, twice(EchoTime=30), Policy(time="stack"))
    assert [volume.shape for volume in found.volumes] == [(5, 6, COUNT)] * 2
    assert found.volumes[1].split == (("EchoTime", 30),)


def test_a_localizer_leaves_the_stack_as_it_is(tmp_path):
    truth = loaded(tmp_path / "a", stack())
    scout = ct(number=40, ImageOrientationPatient=[1, 0, 0, 0, 0, -1], ImagePositionPatient=[-100, 3, 90])
    flagged = ct(number=41, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])  # as the stack is oriented
    found = planned(tmp_path / "b", [scout, *stack(), flagged])
    assert not found.refused and len(found.volumes) == 3
    main = load(found.volumes[0])
    np.testing.assert_array_equal(main.array, truth.array)
    np.testing.assert_array_equal(main.affine, truth.affine)
    assert "W-DCM-LOCALIZER" not in notes(main)
    assert all("W-DCM-LOCALIZER" in notes(volume) for volume in found.volumes[1:])


def test_another_matrix_is_another_volume(tmp_path):
    small = [ct(pattern(4, 4, seed=n), number=10 + n, ImagePositionPatient=[0, 0, 99 + n]) for n in range(3)]
    found = planned(tmp_path / "a", [*stack(), *small])
    assert [volume.shape for volume in found.volumes] == [(5, 6, COUNT), (4, 4, 3)]
    odd = stack()
    odd[3] = ct(pattern(4, 4), number=3)
    assert codes(planned(tmp_path / "b", odd)) == ["E-DCM-GAP"] * 2


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"PixelSpacing": None}, "E-DCM-SPACING"),
        ({"PixelSpacing": [0, 0]}, "E-DCM-SPACING"),
        ({"PixelSpacing": [-1, 1]}, "E-DCM-SPACING"),
        ({"ImagePositionPatient": None}, "E-DCM-GEOMETRY"),
        ({"ImageOrientationPatient": None}, "E-DCM-GEOMETRY"),
        ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "E-DCM-GEOMETRY"),
        ({"ImageOrientationPatient": [1, 0, 0, 0, 1.01, 0]}, "E-DCM-GEOMETRY"),
        ({"ImageOrientationPatient": [0, 0, 0, 0, 0, 0]}, "E-DCM-GEOMETRY"),
        ({"RescaleSlope": 0}, "E-DCM-RESCALE"),
        ({"RescaleIntercept": "1e999"}, "E-DCM-RESCALE"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:Invalid value for VR")
def test_what_nobody_may_guess(tmp_path, changes, code):
    found = planned(tmp_path, stack(**changes))
    assert codes(found) == [code] and not found.volumes
    assert len(found.refused[0].headers) == COUNT


def test_one_bad_rescale_refuses_the_stack(tmp_path):
    slices = stack()
    slices[4].RescaleSlope = 0
    found = planned(tmp_path, slices)
    assert codes(found) == ["E-DCM-RESCALE"] and len(found.refused[0].headers) == COUNT


def test_a_rescale_that_some_slices_lack_refuses_the_stack(tmp_path):
    slices = stack()
    change(slices[2], RescaleSlope=None, RescaleIntercept=None)
    found = planned(tmp_path, slices)
    assert codes(found) == ["E-DCM-RESCALE"] and "missing in 1 of 6" in found.refused[0].error.what


def test_mixed_units_are_refused(tmp_path):
    slices = stack(Modality="PT", Units="BQML")
    slices[1].Units = "CNTS"
    found = planned(tmp_path, slices)
    assert codes(found) == ["E-DCM-UNITS"] and "BQML, CNTS" in found.refused[0].error.what


def test_a_damaged_file_refuses_its_series_unless_allowed(tmp_path):
    headers = write_all(tmp_path, stack())
    path = headers[-1].path
    path.write_bytes(path.read_bytes()[:-9])
    headers[-1] = read_header(path)
    found = plan(headers)
    assert sorted(codes(found)) == ["E-DCM-INCOMPLETE", "E-DCM-TRUNCATED"] and not found.volumes
    found = plan(headers, Policy(allow_incomplete=True))
    assert codes(found) == ["E-DCM-TRUNCATED"]
    assert "W-DCM-INCOMPLETE" in notes(found.volumes[0])
    middle = [*headers[:2], replace(headers[2], fault=("E-DCM-PIXELS", "x")), *headers[3:-1]]
    assert sorted(codes(plan(middle, Policy(allow_incomplete=True)))) == ["E-DCM-GAP", "E-DCM-PIXELS"]


def test_a_screenshot_without_a_place_does_not_make_the_series_incomplete(tmp_path):
    page = ct(number=30, SOPClassUID="1.2.840.10008.5.1.4.1.1.7", ImagePositionPatient=None, PixelSpacing=None)
    found = planned(tmp_path, [*stack(), page])
    assert not found.refused
    assert sorted(volume.shape[2] for volume in found.volumes) == [1, COUNT]


@pytest.mark.parametrize(
    ("first", "changes", "words"),
    [(2, {}, "begin with 3"), (0, {"ImagesInAcquisition": 9}, "9 slices are stated, 6 are there")],
)
def test_numbers_that_say_that_ends_are_missing(tmp_path, first, changes, words):
    slices = [change(ds, InstanceNumber=n + first + 1, **changes) for n, ds in enumerate(stack())]
    (volume,) = planned(tmp_path, slices).volumes
    assert notes(volume) == {"W-DCM-ENDS"} and words in volume.notes[0].what


def test_a_stated_distance_that_disagrees_is_noted(tmp_path):
    (volume,) = planned(tmp_path, stack(SpacingBetweenSlices=1.25)).volumes
    assert notes(volume) == {"W-DCM-SLICE-SPACING"}
    (volume,) = planned(tmp_path / "b", stack(SpacingBetweenSlices=2.5)).volumes
    assert not volume.notes


def test_one_slice_is_as_thick_as_it_says(tmp_path):
    volume = loaded(tmp_path / "a", stack(1))
    assert volume.spacing == (0.7, 0.8, 2.5) and not volume.notes
    assert "W-DCM-THICKNESS" in notes(loaded(tmp_path / "b", stack(1, SliceThickness=None)))
    nowhere = loaded(tmp_path / "c", stack(1, ImagePositionPatient=None))
    assert nowhere.affine is None and "W-DCM-NO-PLACE" in notes(nowhere)
    assert nowhere.spacing == (0.7, 0.8)


PICTURE = {"ImagePositionPatient": None, "ImageOrientationPatient": None, "RescaleType": None}


def region(unit):
    units = {"PhysicalUnitsXDirection": unit, "PhysicalUnitsYDirection": 3}
    return item(RegionSpatialFormat=1, PhysicalDeltaX=0.03, PhysicalDeltaY=-0.04, **units)


@pytest.mark.parametrize(
    ("changes", "spacing", "noted"),
    [
        ({"Modality": "DX", "PixelSpacing": None, "ImagerPixelSpacing": [0.2, 0.1]}, (0.1, 0.2), "W-DCM-PIXEL-SIZE"),
        ({"Modality": "MG", "PixelSpacing": [0, 0], "ImagerPixelSpacing": [0.2, 0.1]}, (0.1, 0.2), "W-DCM-PIXEL-SIZE"),
        ({"Modality": "DX", "ImagerPixelSpacing": [0.9, 0.9]}, (0.7, 0.8), None),  # a calibrated one
        ({"Modality": "DX", "PixelSpacing": None}, None, None),
        ({"Modality": "US", "PixelSpacing": None, "SequenceOfUltrasoundRegions": region(3)}, (0.3, 0.4), None),
        ({"Modality": "US", "PixelSpacing": None, "SequenceOfUltrasoundRegions": region(4)}, None, None),  # seconds
        ({"Modality": "OT", "PixelSpacing": None}, None, None),
    ],
)  # fmt: skip
def test_pixel_sizes_of_images_without_a_place(tmp_path, changes, spacing, noted):
    volume = loaded(tmp_path, [ct(**PICTURE, **changes)])
    assert volume.affine is None and volume.array.shape == (5, 6, 1)
    assert volume.spacing == (None if spacing is None else pytest.approx(spacing))
    assert notes(volume) == {"W-DCM-NO-PLACE", *([noted] if noted else [])}


def test_radiographs_of_one_series_are_images_of_their_own(tmp_path):
    found = planned(tmp_path, stack(3, Modality="DX", **PICTURE))
    assert [volume.shape for volume in found.volumes] == [(5, 6, 1)] * 3


def test_a_clip_is_kept_over_time_or_refused(tmp_path):
    clip = np.stack([pattern(seed=n) for n in range(4)])
    grey = loaded(tmp_path / "a", [ct(clip, Modality="US", NumberOfFrames=4, FrameTime=40, **PICTURE)])
    assert grey.array.shape == (5, 6, 1, 4) and grey.time_step_s == 0.04 and "W-DCM-CINE" in notes(grey)
    np.testing.assert_array_equal(grey.array[:, :, 0, 2], clip[2][::-1].T.astype(int) - 1024)
    rgb = ct(
        NumberOfFrames=2,
        Modality="US",
        SamplesPerPixel=3,
        PhotometricInterpretation="RGB",
        PlanarConfiguration=0,
        **PICTURE,
    )
    change(rgb, BitsAllocated=8, BitsStored=8, HighBit=7, PixelData=bytes(6 * 5 * 3 * 2))
    assert codes(planned(tmp_path / "b", [rgb])) == ["E-DCM-CINE"]


def test_a_volume_too_large_is_refused_before_it_is_loaded(tmp_path):
    found = planned(tmp_path, stack(), Policy(max_bytes=2 * 5 * 6 * COUNT - 1))
    assert codes(found) == ["E-DCM-SIZE"]
    assert planned(tmp_path / "b", stack(), Policy(max_bytes=2 * 5 * 6 * COUNT)).volumes


def groups(places, **content):
    frames = [item(PlanePositionSequence=item(ImagePositionPatient=place), **values)[0] for place, values in places]
    return {"PerFrameFunctionalGroupsSequence": frames, "NumberOfFrames": len(frames), **content}


def enhanced(pixels, places, *, number=0, **shared):
    macros = {
        "PixelMeasuresSequence": item(PixelSpacing=[0.8, 0.7], SliceThickness=2.5),
        "PlaneOrientationSequence": item(ImageOrientationPatient=AXIAL),
        "PixelValueTransformationSequence": item(RescaleSlope=1, RescaleIntercept=-1024, RescaleType="HU"),
        **shared,
    }
    ds = ct(pixels, number=number, SOPClassUID="1.2.840.10008.5.1.4.1.1.2.1", **groups(places))
    for keyword in (
        "ImagePositionPatient",
        "ImageOrientationPatient",
        "PixelSpacing",
        "RescaleSlope",
        "RescaleIntercept",
    ):
        del ds[keyword]
    ds.SharedFunctionalGroupsSequence = item(**macros)
    return ds


def test_enhanced_frames_are_sorted_and_scaled_each_by_its_own(tmp_path):
    frames = np.stack([pattern(seed=n) for n in range(4)])
    order = [2, 0, 3, 1]
    places = [
        (
            [-10, -20, 2.5 * z],
            {"PixelValueTransformationSequence": item(RescaleSlope=z + 1, RescaleIntercept=z, RescaleType="HU")},
        )
        for z in order
    ]
    volume = loaded(tmp_path, [enhanced(frames, places)])
    for n, z in enumerate(order):
        np.testing.assert_array_equal(volume.array[:, :, z], frames[n][::-1].T.astype(int) * (z + 1) + z)
    classic = loaded(tmp_path / "b", stack(4))
    np.testing.assert_allclose(volume.affine, classic.affine)


def test_enhanced_echoes_and_times(tmp_path):
    frames = np.stack([pattern(seed=n) for n in range(8)])
    places = [
        ([0, 0, 2.5 * (n % 2)], {
            "MREchoSequence": item(EffectiveEchoTime=float(10 + 20 * (n // 4))),
            "FrameContentSequence": item(TemporalPositionIndex=1 + (n // 2) % 2),
        })
        for n in range(8)
    ]  # fmt: skip
    ds = enhanced(frames, places)
    assert len(planned(tmp_path / "a", [ds]).volumes) == 4
    found = planned(tmp_path / "b", [ds], Policy(time="stack"))
    assert [volume.split for volume in found.volumes] == [(("EchoTime", 10),), (("EchoTime", 30),)]
    array = load(found.volumes[1]).array
    for k, t in np.ndindex(2, 2):
        np.testing.assert_array_equal(array[:, :, k, t], frames[4 + 2 * t + k][::-1].T.astype(int) - 1024)


def test_enhanced_files_without_places_are_refused(tmp_path):
    ds = enhanced(np.stack([pattern(), pattern()]), [([0, 0, 0], {}), ([0, 0, 1], {})])
    del ds.PerFrameFunctionalGroupsSequence
    assert codes(planned(tmp_path, [ds])) == ["E-DCM-GEOMETRY"]


def test_every_frame_ends_in_exactly_one_place(tmp_path):
    scout = ct(number=40, ImageOrientationPatient=[1, 0, 0, 0, 0, -1])
    slices = [*twice(EchoTime=30)[:-2], scout, *stack(3, series="1.2.9", PixelSpacing=None)]
    headers = write_all(tmp_path, slices)
    found = plan(headers)
    placed = [s.header.path for volume in found.volumes for s in volume.slices]
    placed += [header.path for refused in found.refused for header in refused.headers]
    placed += [ignored.header.path for ignored in found.ignored]
    assert sorted(placed) == sorted(header.path for header in headers)


def test_ten_thousand_headers_are_planned_in_seconds():
    frame = Frame(0, position=(0.0, 0.0, 0.0), orientation=(1.0, 0, 0, 0, 1, 0), spacing=(1.0, 1.0))
    model = _model()

    def place(n):
        return replace(frame, position=(0.0, 0.0, float(n)))

    headers = [
        replace(model, sop_instance_uid=f"1.{n}", series_uid=f"2.{n // 100}", frames=(place(n % 100),))
        for n in range(10_000)
    ]
    assert len(plan(headers).volumes) == 100


def _model() -> Header:
    pixels = Pixels("PixelData", 0, 60, "1.2.840.10008.1.2.1", 6, 5, 1, 1, 16, 12, 11, False, "MONOCHROME2", 0)
    return Header(Path("x"), 1, 1, "1", "1.2.840.10008.5.1.4.1.1.4", "2", "3", "P", "MR", "image", pixels=pixels)


def test_axes_are_orthonormal_or_none():
    axes = axes_of((0.9999, 0, 0, 0.0003, 1, 0))
    assert axes is not None
    matrix = np.stack([axes.row, axes.column, axes.normal])
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(3), atol=1e-12)
    assert axes_of((1, 0, 0, 0.1, 0.995, 0)) is None
