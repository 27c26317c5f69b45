"""Segmentations and structure sets as masks: voxel by voxel where they were drawn, or refused."""

import itertools
from dataclasses import replace

import highdicom as hd
import numpy as np
import pydicom
import pytest
from segments_made import (
    SEGMENTS,
    contour,
    described,
    inside,
    marked,
    outline,
    sources_of,
    voxel_centres,
    write_rtstruct,
    write_seg,
)

from medmtl.data.synthetic.dicom import write_phantom
from medmtl.errors import UserError
from medmtl.ingest.segments import drawings, target_names
from medmtl.io.dicom.header import header_from_json, header_to_json, read_header
from medmtl.io.dicom.lattice import Lattice
from medmtl.io.dicom.load import load
from medmtl.io.dicom.polygon import filled
from medmtl.io.dicom.record import Thing
from medmtl.io.dicom.rtstruct import contour_masks
from medmtl.io.dicom.seg import segment_masks
from medmtl.io.dicom.series import plan


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A phantom folder with a segmentation of two things, by kind of phantom and of segmentation; made once."""
    root, known = tmp_path_factory.mktemp("segmented"), {}

    def make(kind, how="BINARY"):
        if (kind, how) not in known:
            folder = root / f"{kind}-{how}"
            write_phantom(folder / "ct", kind)
            sources = sources_of(folder / "ct")
            pixels = marked(sources)
            if how == "LABELMAP":
                pixels = (pixels[..., 0] + 2 * (pixels[..., 1] & ~pixels[..., 0] & 1)).astype(np.uint8)
            write_seg(folder / "seg.dcm", sources, pixels.astype(float) if how == "FRACTIONAL" else pixels, how=how)
            known[kind, how] = folder
        return known[kind, how]

    return make


def image_of(folder):
    (stack,) = plan(read_header(path) for path in sorted((folder / "ct").glob("*.dcm"))).volumes
    return load(stack), stack


@pytest.mark.parametrize("kind", ["axial", "oblique", "double-oblique", "sagittal", "names-reversed"])
def test_every_voxel_of_a_segment_is_where_it_was_drawn(made, kind):
    folder = made(kind)
    image, _ = image_of(folder)
    masks = segment_masks(folder / "seg.dcm", {"one": (1,), "two": (2,), "both": (1, 2)}, Lattice.of(image))
    points = voxel_centres(image.affine, image.array.shape)
    truth = {n: inside(points, n) for n in SEGMENTS}
    assert all(mask.sum() > 300 for mask in truth.values())
    np.testing.assert_array_equal(masks["one"], truth[1])
    np.testing.assert_array_equal(masks["two"], truth[2])
    np.testing.assert_array_equal(masks["both"], truth[1] | truth[2])


def test_a_label_map(made):
    folder = made("double-oblique", "LABELMAP")
    image, _ = image_of(folder)
    masks = segment_masks(folder / "seg.dcm", {"one": (1,), "two": (2,)}, Lattice.of(image))
    points = voxel_centres(image.affine, image.array.shape)
    np.testing.assert_array_equal(masks["one"], inside(points, 1))
    np.testing.assert_array_equal(masks["two"], inside(points, 2) & ~inside(points, 1))


def test_frames_that_run_other_ways_than_the_slices(made, tmp_path):
    """Drawn in planes across the slices, with every axis turned over: on the same voxels all the same."""
    folder = made("oblique")
    image, _ = image_of(folder)
    sources = sources_of(folder / "ct")
    whole = hd.get_volume_from_series(sources)
    points = np.stack(np.meshgrid(*map(np.arange, whole.spatial_shape), indexing="ij"), -1)
    ras = (points @ whole.affine[:3, :3].T + whole.affine[:3, 3]) * [-1, -1, 1]
    drawn = whole.with_array(inside(ras, 1).astype(np.uint8)).permute_spatial_axes([2, 0, 1])
    drawn = drawn.flip_spatial([0, 1, 2]) if hasattr(drawn, "flip_spatial") else drawn[::-1, ::-1, ::-1]
    write_seg(tmp_path / "turned.dcm", sources, drawn, descriptions=[described(1)])
    masks = segment_masks(tmp_path / "turned.dcm", {"one": (1,)}, Lattice.of(image))
    np.testing.assert_array_equal(masks["one"], inside(voxel_centres(image.affine, image.array.shape), 1))


def _refused(code, function, *arguments):
    with pytest.raises(UserError) as caught:
        function(*arguments)
    assert caught.value.code == code, caught.value
    return caught.value.what


def test_what_lies_on_other_voxels_is_refused(made):
    folder = made("axial")
    image, _ = image_of(folder)
    seg, wanted = folder / "seg.dcm", {"one": (1,)}

    def moved(**changes):
        affine = image.affine.copy()
        for (row, column), value in changes.get("at", {}).items():
            affine[row, column] += value
        return Lattice(affine @ changes.get("times", np.eye(4)), image.array.shape)

    segment_masks(seg, wanted, moved(at={(0, 3): 0.01}))  # within what slices may be off
    for lattice in (
        moved(at={(0, 3): 0.1}),
        moved(at={(2, 3): 1.25}),
        moved(at={(0, 0): 0.01}),
        moved(times=np.diag([1.0, 1.0, 2.0, 1.0])),
    ):
        assert "off the voxels" in _refused("E-SEG-PLACE", segment_masks, seg, wanted, lattice)
    fine = Lattice(image.affine @ np.diag([0.5, 0.5, 1.0, 1.0]), (112, 96, 12))
    assert "another" in _refused("E-SEG-PLACE", segment_masks, seg, wanted, fine)
    few = Lattice(image.affine, (30, *image.array.shape[1:]))
    assert "outside the image" in _refused("E-SEG-PLACE", segment_masks, seg, wanted, few)


def test_fractions_and_damaged_files_are_refused(made, tmp_path):
    folder = made("axial", "FRACTIONAL")
    lattice = Lattice.of(image_of(folder)[0])
    _refused("E-SEG-KIND", segment_masks, folder / "seg.dcm", {"one": (1,)}, lattice)
    content = (made("axial") / "seg.dcm").read_bytes()
    (tmp_path / "cut.dcm").write_bytes(content[: len(content) // 2])
    _refused("E-SEG-READ", segment_masks, tmp_path / "cut.dcm", {"one": (1,)}, lattice)
    assert read_header(tmp_path / "cut.dcm").fault[0] in ("E-DCM-HEADER", "E-DCM-TRUNCATED")  # before it comes so far


def test_what_a_header_says_of_a_segmentation(made):
    folder = made("axial")
    header = read_header(folder / "seg.dcm")
    _, stack = image_of(folder)
    assert header.kind == "SEG" and header.fault is None and header.drawn.way == "BINARY"
    assert [(thing.number, thing.code, thing.label) for thing in header.drawn.things] == [
        (1, ("SCT", "Liver"), "thing 1"), (2, ("SCT", "Spleen"), "thing 2"),
    ]  # fmt: skip
    assert set(header.drawn.images) <= {other.sop_instance_uid for other in stack.headers}
    assert header_from_json(header_to_json(header)) == header
    (found,), refused = drawings([("seg.dcm", header)], [stack], keep=False)
    assert {name: one.numbers for name, one in found.items()} == {"liver": (1,), "spleen": (2,)} and not refused


def test_the_background_of_a_label_map_is_nothing_that_is_drawn(made):
    path = made("double-oblique", "LABELMAP") / "seg.dcm"
    assert [segment.SegmentNumber for segment in pydicom.dcmread(path).SegmentSequence] == [0, 1, 2]
    assert [thing.number for thing in read_header(path).drawn.things] == [1, 2]


@pytest.mark.parametrize("how", ["BINARY", "LABELMAP"])
def test_what_is_marked_and_not_described_is_refused(made, tmp_path, how):
    folder = made("double-oblique", how)
    ds = pydicom.dcmread(folder / "seg.dcm")
    ds.SegmentSequence = [segment for segment in ds.SegmentSequence if segment.SegmentNumber != 2]
    ds.save_as(tmp_path / "seg.dcm")
    what = _refused("E-SEG-READ", segment_masks, tmp_path / "seg.dcm", {"one": (1,)}, Lattice.of(image_of(folder)[0]))
    assert "does not describe" in what


@pytest.mark.parametrize(("keyword", "group"), [
    ("ImagePositionPatient", "PlanePositionSequence"), ("ImageOrientationPatient", "PlaneOrientationSequence"),
])  # fmt: skip
def test_a_place_of_too_many_numbers_is_refused(made, tmp_path, keyword, group):
    folder = made("axial")
    ds = pydicom.dcmread(folder / "seg.dcm")
    where = ds.PerFrameFunctionalGroupsSequence[0]
    where = where if group in where else ds.SharedFunctionalGroupsSequence[0]
    setattr(where[group][0], keyword, [*where[group][0][keyword].value, 1])
    ds.save_as(tmp_path / "seg.dcm")
    _refused("E-SEG-READ", segment_masks, tmp_path / "seg.dcm", {"one": (1,)}, Lattice.of(image_of(folder)[0]))


def test_two_things_of_one_number_are_refused(made):
    folder = made("axial")
    header = read_header(folder / "seg.dcm")
    twice = replace(header, drawn=replace(header.drawn, things=(header.drawn.things[0], Thing(1, label="spleen"))))
    assert drawings([("seg.dcm", twice)], [image_of(folder)[1]], keep=False)[1]["seg.dcm"][0] == "E-SEG-READ"


def test_an_object_belongs_to_the_volume_that_most_of_its_images_are_in(tmp_path):
    write_phantom(tmp_path / "ct", "two-series")
    headers = [read_header(path) for path in sorted((tmp_path / "ct").glob("*.dcm"))]
    stacks = plan(headers).volumes
    of_first = [pydicom.dcmread(header.path) for header in stacks[1].headers]
    write_seg(tmp_path / "seg.dcm", of_first, marked(of_first))
    seg = read_header(tmp_path / "seg.dcm")
    found, refused = drawings([("seg.dcm", seg)], stacks, keep=False)
    assert [sorted(one) for one in found] == [[], ["liver", "spleen"]] and not refused
    assert drawings([("seg.dcm", seg)], stacks[:1], keep=False)[1]["seg.dcm"][0] == "E-SEG-REFERENCE"
    both, refused = drawings([("a", seg), ("b", seg)], stacks, keep=False)
    assert not any(both) and {code for code, _ in refused.values()} == {"E-SEG-TWICE"} and set(refused) == {"a", "b"}


@pytest.mark.parametrize(("change", "code"), [
    ({"PatientID": "somebody else"}, "E-SEG-REFERENCE"), ({"FrameOfReferenceUID": "1.2.3"}, "E-SEG-PLACE"),
])  # fmt: skip
def test_an_object_of_another_patient_or_place_is_refused(made, tmp_path, change, code):
    folder = made("axial")
    ds = pydicom.dcmread(folder / "seg.dcm")
    for keyword, value in change.items():
        setattr(ds, keyword, value)
    ds.save_as(tmp_path / "seg.dcm")
    _, refused = drawings([("seg", read_header(tmp_path / "seg.dcm"))], [image_of(folder)[1]], keep=False)
    assert refused["seg"][0] == code


LIVER, LUNG = ("SCT", "Liver"), ("SCT", "Lung")


@pytest.mark.parametrize(
    ("things", "keep", "names"),
    [
        ([Thing(1, LUNG, (("SCT", "Left"),)), Thing(2, LUNG, (("SCT", "Right"),))], False,
         {"lung_left": (1,), "lung_right": (2,)}),
        ([Thing(1, ("SCT", "Tissue"), (), "liver"), Thing(2, ("SCT", "Tissue"), (), "spleen")], False,
         {"tissue_liver": (1,), "tissue_spleen": (2,)}),
        ([Thing(1, LIVER, (), "lesion 1"), Thing(2, LIVER, (), "lesion 2")], False, {"liver_lesion": (1, 2)}),
        ([Thing(1, ("99X", "Dr. Quack"), (), "Quack"), Thing(2, label="GTV")], False, {"segment_1": (1,), "gtv": (2,)}),
        ([Thing(1, ("99X", "Dr. Quack"), (), "Quack's lesion")], True, {"quack_s_lesion": (1,)}),
    ],
)  # fmt: skip
def test_what_masks_are_called(things, keep, names):
    """By published codes; what a person typed only where names are kept, or where every word of it is known."""
    assert target_names(things, "SEG", keep=keep) == names


# contours


def _inside_by_rays(polygon, point):
    """Even-odd, one point, from the textbook: a ray along x."""
    x, y = point
    count = 0
    for (x0, y0), (x1, y1) in itertools.pairwise([*polygon, polygon[0]]):
        if (y0 > y) != (y1 > y) and x < x0 + (y - y0) * (x1 - x0) / (y1 - y0):
            count += 1
    return count % 2 == 1


@pytest.mark.parametrize("seed", range(6))
def test_a_polygon_is_filled_by_the_even_odd_rule(seed):
    """Random polygons that cross themselves and leave the image, against rays from each pixel."""
    rng = np.random.default_rng(seed)
    polygon = rng.uniform(-4, 24, (rng.integers(3, 12), 2))
    want = [[_inside_by_rays(polygon, (i, j)) for j in range(17)] for i in range(21)]
    np.testing.assert_array_equal(filled(polygon, (21, 17)), want)


def test_a_polygon_on_pixel_centres_counts_its_lower_edges_only():
    square = np.array([[2, 3], [6, 3], [6, 8], [2, 8]], float)
    want = np.zeros((10, 10), bool)
    want[2:6, 4:9] = True  # four by five, as its area is; the tie goes to the same side on every edge
    found = filled(square, (10, 10))
    assert found.sum() == 20
    np.testing.assert_array_equal(found[2:6].sum(axis=1), [5] * 4)
    beside = filled(np.add(square, [4, 0]), (12, 10))
    assert not (filled(square, (12, 10)) & beside).any()
    np.testing.assert_array_equal(filled(square[::-1], (10, 10)), found)  # whichever way round


OUTER = [(5.21, 6.33), (40.72, 8.14), (35.53, 40.27), (8.46, 30.61)]
HOLE = [(15.51, 15.57), (25.53, 16.52), (20.58, 25.56)]


@pytest.mark.parametrize("kind", ["axial", "double-oblique"])
def test_contours_are_filled_on_their_slices_and_one_in_another_is_a_hole(made, tmp_path, kind):
    folder = made(kind)
    image, stack = image_of(folder)
    sources = [pydicom.dcmread(header.path) for header in stack.headers]  # along the normal
    contours = [contour(outline(sources[k], polygon)) for k in (3, 4) for polygon in (OUTER, HOLE)]
    path = write_rtstruct(tmp_path / "rt.dcm", sources, {7: contours})
    masks, notes = contour_masks(path, {"gtv": (7,)}, Lattice.of(image))
    want = np.zeros(image.array.shape, bool)
    for column, row in itertools.product(range(56), range(48)):
        hit = _inside_by_rays(OUTER, (column, row)) and not _inside_by_rays(HOLE, (column, row))
        want[column, 47 - row, 3:5] = hit  # j runs from the last row to the first
    np.testing.assert_array_equal(masks["gtv"], want)
    assert want.sum() > 1000 and not notes
    assert read_header(path).drawn.images == tuple(s.SOPInstanceUID for s in sources)


def test_contours_that_lie_nowhere_and_lines_that_enclose_nothing(made, tmp_path):
    folder = made("axial")
    image, stack = image_of(folder)
    lattice = Lattice.of(image)
    sources = [pydicom.dcmread(header.path) for header in stack.headers]
    line = contour(outline(sources[2], HOLE), "OPEN_PLANAR")
    far = [contour(outline(sources[k], OUTER)) for k in (1, 4)]
    path = write_rtstruct(tmp_path / "rt.dcm", sources, {1: [line], 2: far})
    masks, notes = contour_masks(path, {"line": (1,), "far": (2,)}, lattice)
    assert set(masks) == {"far"} and masks["far"].any(axis=(0, 1)).nonzero()[0].tolist() == [1, 4]
    assert {name: [note.code for note in of_one] for name, of_one in notes.items()} == {
        "line": ["W-SEG-LEFT-OUT"], "far": ["W-SEG-GAPS"],
    }  # fmt: skip
    between = contour(np.add(outline(sources[2], OUTER), [0, 0, 1.2]))
    above = contour(np.add(outline(sources[-1], OUTER), [0, 0, 2.5]))
    steep = np.array(outline(sources[2], OUTER))
    steep[0, 2] += 2.5
    for n, one in enumerate((between, above, contour(steep))):
        path = write_rtstruct(tmp_path / f"{n}.dcm", sources, {1: [one]})
        _refused("E-SEG-PLACE", contour_masks, path, {"one": (1,)}, lattice)
    broken = contour(outline(sources[2], HOLE))
    broken.ContourData = ["1", "2", "3", "4"]
    path = write_rtstruct(tmp_path / "broken.dcm", sources, {1: [broken]})
    _refused("E-SEG-READ", contour_masks, path, {"one": (1,)}, lattice)
    overflowing = contour(np.full((3, 3), 1.0))
    overflowing.ContourData = ["1.7e308"] * 9
    path = write_rtstruct(tmp_path / "overflowing.dcm", sources, {1: [overflowing]})
    _refused("E-SEG-PLACE", contour_masks, path, {"one": (1,)}, lattice)
    path = write_rtstruct(tmp_path / "nameless.dcm", sources, {1: [line], 2: far}, names=("one",))
    _refused("E-SEG-READ", contour_masks, path, {"one": (1,)}, lattice)


def test_a_region_without_any_contour_is_told_of(made, tmp_path):
    folder = made("axial")
    image, stack = image_of(folder)
    sources = [pydicom.dcmread(header.path) for header in stack.headers]
    path = write_rtstruct(tmp_path / "rt.dcm", sources, {1: [], 2: [contour(outline(sources[1], OUTER))]})
    masks, notes = contour_masks(path, {"none": (1,), "one": (2,)}, Lattice.of(image))
    assert set(masks) == {"one"} and [note.code for note in notes["none"]] == ["W-SEG-LEFT-OUT"]
