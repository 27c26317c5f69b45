"""Laws of NIfTI volumes: what is written is read by all in the same place, and what others wrote as they read it."""

import gzip
import hashlib
import resource
import subprocess
import tracemalloc
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK
from laws import refuses

from medmtl.errors import EnvironmentFailure
from medmtl.io.affine import corner_distance_mm, corners_mm
from medmtl.io.nifti import files_of, read_header, read_nifti, write_nifti
from medmtl.io.volume import Volume

SHAPE = (7, 6, 5)
RNG = np.random.default_rng(0)
CT = RNG.integers(-1024, 3071, SHAPE).astype(np.int16)
DATA = Path(__file__).parents[2].parent / "shared" / "data"
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def _turned(*degrees: float) -> np.ndarray:
    """A rotation about x, then y, then z."""
    turn = np.eye(3)
    for axis, angle in enumerate(np.radians(degrees)):
        a, b = [n for n in range(3) if n != axis]
        step = np.eye(3)
        step[a, a] = step[b, b] = np.cos(angle)
        step[a, b], step[b, a] = -np.sin(angle), np.sin(angle)
        turn = step @ turn
    return turn


def _affine(matrix: np.ndarray, origin: tuple[float, float, float] = (-123.4, 56.7, 890.1)) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = matrix, origin
    return affine


PSR = np.array([[0, 0, 1.2], [-0.9, 0, 0], [0, 1.1, 0]])
AFFINES = {
    "plain": _affine(np.eye(3)),
    "anisotropic": _affine(np.diag([0.7, 0.8, 2.5])),
    "left-handed": _affine(np.diag([-0.7, 0.8, 2.5])),
    "PSR": _affine(PSR),
    "oblique": _affine(_turned(10, -20, 35) @ np.diag([0.7, 0.8, 2.5])),
    "oblique left-handed": _affine(_turned(170, 12, -5) @ np.diag([-0.7, 0.8, 2.5])),
    "a breath from LPS": _affine(_turned(0, 0, 179.99) @ np.diag([0.7, 0.8, 2.5])),
}
SHEARED = _affine(np.array([[0.7, 0, 0], [0, 0.8, 0.65], [0, 0, 2.41]]))
each_affine = pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)


def _same(found: Volume, expected: Volume) -> None:
    np.testing.assert_array_equal(found.array, expected.array)
    assert found.array.dtype == expected.array.dtype
    np.testing.assert_allclose(found.affine, expected.affine, rtol=1e-6, atol=1e-5)
    assert found.colour == expected.colour
    assert found.notes == ()


def _itk_corners(image: SimpleITK.Image) -> np.ndarray:
    """Corners in RAS+, in the order of :func:`corners_mm`."""
    ends = [(0, size - 1) for size in image.GetSize()]
    indices = [(i, j, k) for i in ends[0] for j in ends[1] for k in ends[2]]
    return np.array([image.TransformIndexToPhysicalPoint(index) for index in indices]) @ LPS[:3, :3]


# writing


@each_affine
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_what_is_written_is_read_in_the_same_place_by_everyone(tmp_path, affine, suffix):
    volume = Volume(CT, affine)
    path = write_nifti(tmp_path / f"a{suffix}", volume)
    _same(read_nifti(path), volume)

    theirs = nibabel.load(path)
    np.testing.assert_array_equal(np.asarray(theirs.dataobj), CT)
    assert theirs.get_data_dtype() == np.int16
    np.testing.assert_allclose(corners_mm(theirs.affine, SHAPE), corners_mm(affine, SHAPE), atol=1e-3)
    qform, code = theirs.header.get_qform(coded=True)
    assert not code or corner_distance_mm(qform, affine, SHAPE) < 1e-3
    assert theirs.header.get_sform(coded=True)[1] == 1 and theirs.header.get_xyzt_units()[0] == "mm"

    image = SimpleITK.ReadImage(str(path))
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(image).T, CT)
    np.testing.assert_allclose(_itk_corners(image), corners_mm(affine, SHAPE), atol=1e-3)


def test_a_shear_is_in_the_sform_alone(tmp_path):
    path = write_nifti(tmp_path / "a.nii", Volume(CT, SHEARED))
    header = nibabel.load(path).header
    assert (int(header["sform_code"]), int(header["qform_code"])) == (1, 0)
    np.testing.assert_allclose(header.get_zooms(), np.linalg.norm(SHEARED[:3, :3], axis=0), rtol=1e-6)
    found = read_nifti(path)
    np.testing.assert_allclose(found.affine, SHEARED, atol=1e-4)
    assert [note.code for note in found.notes] == ["W-NII-SHEAR"]
    assert "15.1 degrees" in found.notes[0].what  # arctan(.65 / 2.41)


def test_a_quaternion_that_cannot_say_it_is_left_out(tmp_path):
    """Close to a turn by 180 degrees, the quaternion's real part is lost in float32."""
    affine = _affine(_turned(0, 0, 179.98) @ np.diag([0.7, 0.7, 2.5]))
    volume = Volume(RNG.integers(0, 99, (300, 300, 3)).astype(np.uint8), affine)
    header = nibabel.load(write_nifti(tmp_path / "a.nii", volume)).header
    assert int(header["qform_code"]) == 0
    header.set_qform(affine, 1)
    assert corner_distance_mm(header.get_qform(), affine, volume.array.shape) > 1e-3


@pytest.mark.parametrize(
    "kind", ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "float32", "float64", ">i2", ">f4"]
)
def test_every_type_keeps_its_values(tmp_path, kind):
    array = (RNG.random(SHAPE) * 100).astype(kind)
    found = read_nifti(write_nifti(tmp_path / "a.nii.gz", Volume(array, np.eye(4))))
    _same(found, Volume(array.astype(array.dtype.newbyteorder("=")), np.eye(4)))
    np.testing.assert_array_equal(np.asarray(nibabel.load(tmp_path / "a.nii.gz").dataobj), array)


@pytest.mark.parametrize(("kind", "stored"), [("bool", "uint8"), ("float16", "float32"), ("uint64", "int64")])
def test_types_without_a_place_take_a_wider_one(tmp_path, kind, stored):
    array = (CT > 0).astype(kind)
    found = read_nifti(write_nifti(tmp_path / "a.nii", Volume(array, np.eye(4)))).array
    np.testing.assert_array_equal(found, array)
    assert found.dtype == stored


def test_time_and_its_step_are_kept(tmp_path):
    array = RNG.integers(0, 99, (*SHAPE, 3)).astype(np.uint16)
    volume = Volume(array, AFFINES["oblique"], time_step_s=2.25)
    path = write_nifti(tmp_path / "a.nii.gz", volume)
    found = read_nifti(path)
    _same(found, volume)
    assert found.time_step_s == 2.25
    assert nibabel.load(path).header.get_zooms()[3] == 2.25 and nibabel.load(path).header.get_xyzt_units()[1] == "sec"
    path = write_nifti(path, replace(volume, time_step_s=None))
    assert read_nifti(path).time_step_s is None
    assert [note.code for note in read_nifti(path).notes] == ["W-NII-TIME"]


def test_colour_is_rgb24(tmp_path):
    volume = Volume(RNG.integers(0, 256, (*SHAPE, 3), dtype=np.uint8), AFFINES["oblique"], colour=True)
    path = write_nifti(tmp_path / "a.nii.gz", volume)
    _same(read_nifti(path), volume)
    theirs = np.asarray(nibabel.load(path).dataobj)
    np.testing.assert_array_equal(np.stack([theirs[c] for c in "RGB"], axis=-1), volume.array)
    image = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))  # [K, J, I, 3]
    np.testing.assert_array_equal(image.transpose(2, 1, 0, 3), volume.array)


def test_a_long_axis_makes_it_nifti2(tmp_path):
    volume = Volume(RNG.integers(0, 9, (40000, 1, 2)).astype(np.uint8), np.diag([0.01, 1, 1, 1]))
    path = write_nifti(tmp_path / "a.nii", volume)
    _same(read_nifti(path), volume)
    assert read_header(path).version == 2
    np.testing.assert_array_equal(np.asarray(nibabel.load(path).dataobj), volume.array)


@pytest.mark.parametrize("spacing", [None, (0.5, 0.25, 3.0)])
def test_no_place_stays_no_place(tmp_path, spacing):
    path = write_nifti(tmp_path / "a.nii", Volume(CT, None, spacing=spacing))
    found = read_nifti(path)
    assert found.affine is None and found.spacing == spacing
    assert "W-NII-NO-PLACE" in [note.code for note in found.notes]
    np.testing.assert_array_equal(np.asarray(nibabel.load(path).dataobj), CT)


def test_bytes_depend_on_the_values_alone(tmp_path):
    big = RNG.integers(0, 400, (130, 120, 150)).astype(np.int16)  # several blocks
    orders = [big, np.asfortranarray(big), np.flip(np.flip(big, 1).copy(), 1), big.astype(">i2"), big[::1, :, :].copy()]
    digests = {
        hashlib.sha256(write_nifti(tmp_path / f"{n}.nii.gz", Volume(array, np.eye(4))).read_bytes()).hexdigest()
        for n, array in enumerate(orders)
    }
    assert len(digests) == 1
    subprocess.run(["gzip", "-t", tmp_path / "0.nii.gz"], check=True, capture_output=True)
    content = gzip.decompress((tmp_path / "0.nii.gz").read_bytes())
    assert content[352:] == big.tobytes(order="F")


def test_only_geometry_is_stored(tmp_path):
    path = write_nifti(tmp_path / "Muster^Max.nii.gz", Volume(CT, np.eye(4), units="HU"))
    content = gzip.decompress(path.read_bytes())
    assert b"Muster" not in path.read_bytes() + content
    header = nibabel.load(path).header
    assert header["descrip"].item() == b"medmtl"
    text = ["data_type", "db_name", "aux_file", "intent_name"]
    assert all(header[field].item() == b"" for field in text)
    assert (header["scl_slope"].item(), header["scl_inter"].item()) == (1, 0) or np.isnan(header["scl_slope"].item())
    assert np.frombuffer(content, "<f4", 2, 112).tolist() == [1, 0]
    assert path.read_bytes()[3:8] == bytes(5)  # no flags, no time


def test_a_fortran_array_is_not_copied(tmp_path):
    array = np.asfortranarray(RNG.integers(0, 9, (128, 128, 256)).astype(np.int16))
    for name in ("a.nii", "a.nii.gz"):
        tracemalloc.start()
        write_nifti(tmp_path / name, Volume(array, np.eye(4)))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < array.nbytes  # of 8 MiB: blocks of one MiB in the queues


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_a_full_disk_leaves_the_old_file(tmp_path, name):
    array = RNG.integers(0, 2**15, (64, 64, 512)).astype(np.int16)  # four blocks
    path = write_nifti(tmp_path / name, Volume(CT, np.eye(4)))
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, limits[1]))
    try:
        refuses("E-DISK", lambda: write_nifti(path, Volume(array, np.eye(4))), kind=EnvironmentFailure)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_a_name_that_is_no_nifti_is_a_defect(tmp_path):
    with pytest.raises(AssertionError, match="neither"):
        write_nifti(tmp_path / "a.nii.bz2", Volume(CT, np.eye(4)))


# reading what others wrote


def _theirs(
    path: Path, array: np.ndarray, affine: np.ndarray | None = None, kind=nibabel.Nifti1Image, **fields
) -> Path:
    """A file as nibabel writes it, then header fields as given, whatever they mean."""
    header = kind.header_class(endianness=fields.pop("endianness", "<"))
    header.set_data_dtype(array.dtype)
    image = kind(array, np.diag([0.7, 0.8, 2.5, 1]) if affine is None else affine, header)
    image.header.set_xyzt_units("mm", "sec")
    for field, value in fields.items():
        if field in ("scl_slope", "scl_inter"):
            image.header[field] = value
            image.header._structarr[field] = value
    nibabel.save(image, path)
    return path


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image, nibabel.Nifti1Pair, nibabel.Nifti2Pair])
@pytest.mark.parametrize("endianness", "<>")
@pytest.mark.parametrize("packed", ["", ".gz"])
def test_both_versions_byte_orders_and_pairs(tmp_path, kind, endianness, packed):
    affine = AFFINES["oblique"]
    pair = "Pair" in kind.__name__
    header = kind.header_class(endianness=endianness)
    header.set_data_dtype(CT.dtype)
    header.set_xyzt_units("mm")
    path = tmp_path / f"a{'.hdr' if pair else '.nii'}{packed}"
    nibabel.save(kind(CT, affine, header), path)
    head = (gzip.decompress(path.read_bytes()) if packed else path.read_bytes())[:4]
    assert int.from_bytes(head, "big" if endianness == ">" else "little") in (348, 540)
    paths = [path, path.with_name(f"a.img{packed}")] if pair else [path]
    assert files_of(path) == tuple(paths)
    for each in paths:
        found = read_nifti(each)
        _same(found, Volume(CT, affine))
        assert found.array.dtype.isnative
        header = read_header(each)
        assert header.shape == SHAPE and header.version == (2 if "2" in kind.__name__ else 1)


@each_affine
def test_the_affine_is_nibabels(tmp_path, affine):
    for name, forms in {"both": (1, 1), "sform": (2, 0), "qform": (0, 1)}.items():
        image = nibabel.Nifti1Image(CT, None)
        image.header.set_xyzt_units("mm")
        image.header["pixdim"][1:4] = np.linalg.norm(affine[:3, :3], axis=0)
        image.set_sform(affine, forms[0])
        image.set_qform(affine, forms[1])
        nibabel.save(image, tmp_path / f"{name}.nii")
        found = read_nifti(tmp_path / f"{name}.nii")
        np.testing.assert_allclose(found.affine, nibabel.load(tmp_path / f"{name}.nii").affine, atol=1e-5)
        assert found.notes == () and found.spacing == pytest.approx(image.header.get_zooms())


def test_gzip_of_several_members_is_one_stream(tmp_path):
    content = write_nifti(tmp_path / "a.nii", Volume(CT, np.eye(4))).read_bytes()
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(content[:400]) + gzip.compress(content[400:]))
    _same(read_nifti(tmp_path / "b.nii.gz"), Volume(CT, np.eye(4)))


REAL = [
    *(f"ixi-t1w/t1w/IXI{n}.nii.gz" for n in ("034-HH-1260", "127-HH-1451")),
    "ixi-t1w/dlmuse/IXI034-HH-1260.nii.gz",
    "oasis1-mmse/t1w_2mm/OAS1_0035_MR1.nii.gz",
    *(f"organs-ct-mr/{name}.nii.gz" for name in ("ct", "ct_labels", "mr", "mr_labels")),
    "dicom/enhanced-vs-classic-philips/ref/1901_cl.nii.gz",
    "dicom/transfer-syntax/ref/1.nii.gz",
    "dicom/mosaic-siemens/ref/EPI_PE_AP_3.nii.gz",
]


@pytest.mark.parametrize("name", REAL)
def test_real_files_are_read_as_nibabel_reads_them(tmp_path, name):
    path = DATA / name
    if not path.is_file():
        pytest.skip(f"{name} is not here")
    found, theirs = read_nifti(path), nibabel.load(path)
    expected = theirs.get_fdata(dtype=np.float64)
    np.testing.assert_array_equal(found.array.astype(np.float64), expected.astype(found.array.dtype))
    assert (found.array.dtype.kind == "f") == bool(np.any(expected != np.rint(expected)))
    np.testing.assert_allclose(found.affine, theirs.affine, atol=1e-5)
    again = read_nifti(write_nifti(tmp_path / "again.nii.gz", found))
    _same(replace(again, notes=()), found)
    assert corner_distance_mm(again.affine, theirs.affine, found.array.shape) < 1e-3
