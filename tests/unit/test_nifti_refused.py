"""NIfTI files that other readers take for what they are not: refused by a code, or noted, before memory is spent."""

import contextlib
import gzip
import os
import tracemalloc
from pathlib import Path

import nibabel
import numpy as np
import pytest
from laws import refuses
from nibabel.nifti1 import header_dtype

from medmtl.errors import UserError
from medmtl.io import gzipped
from medmtl.io.nifti import MAX_BYTES, files_of, read_header, read_nifti, write_nifti
from medmtl.io.volume import Volume

RNG = np.random.default_rng(1)
SHAPE = (6, 5, 4)
CT = RNG.integers(-1000, 1000, SHAPE).astype(np.int16)
AFFINE = np.array([[0.7, 0, 0, -12], [0, 0.8, 0, 34], [0, 0, 2.5, 56], [0, 0, 0, 1.0]])


def _file(path: Path, array: np.ndarray = CT, affine: np.ndarray | None = AFFINE, **fields) -> Path:
    """A sound file whose header fields are then changed; ``pixdim={1: 0.0}`` changes one element."""
    content = write_nifti(path.with_suffix(".nii"), Volume(array, affine)).read_bytes()
    path.with_suffix(".nii").unlink()
    header = np.frombuffer(content[:348], header_dtype).copy()[0]
    for field, value in fields.items():
        for index, element in value.items() if isinstance(value, dict) else [(..., value)]:
            if index is ...:
                header[field] = element
            else:
                header[field][index] = element
    content = header.tobytes() + content[348:]
    path.write_bytes(gzip.compress(content) if path.name.endswith(".gz") else content)
    return path


def _codes(volume) -> list[str]:
    return [note.code for note in volume.notes]


# cut, damaged and foreign bytes


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_a_cut_file_is_refused_wherever_it_is_cut(tmp_path, name):
    content = write_nifti(tmp_path / name, Volume(CT, AFFINE)).read_bytes()
    path = tmp_path / f"cut-{name}"
    for length in range(1, len(content)):
        path.write_bytes(content[:length])
        refuses("E-NII-TRUNCATED" if length > 1 else "E-NII-FORMAT", lambda: read_nifti(path))
    path.write_bytes(b"")
    refuses("E-FILE-EMPTY", lambda: read_nifti(path), says="0 bytes")


def test_a_cut_stream_whose_header_fits_is_refused_by_both_readings(tmp_path):
    content = _file(tmp_path / "a.nii.gz", dim={1: 3000, 2: 3000}).read_bytes()
    message = refuses("E-NII-TRUNCATED", lambda: read_header(tmp_path / "a.nii.gz"), says="3000 x 3000 x 4")
    assert f"{len(content):,} bytes of gzip" in message
    _file(tmp_path / "b.nii.gz", dim={1: 7})  # the file could hold it, and does not
    assert read_header(tmp_path / "b.nii.gz").shape == (7, 5, 4)
    refuses(
        "E-NII-TRUNCATED", lambda: read_nifti(tmp_path / "b.nii.gz"), says="claims 280 bytes of voxels, there are 240"
    )


def test_every_flipped_byte_of_a_gzip_stream_is_found(tmp_path):
    """Or changes no voxel: the last byte of the packed data has bits of padding."""
    content = write_nifti(tmp_path / "a.nii.gz", Volume(CT, AFFINE)).read_bytes()
    found = []
    for at in range(10, len(content)):  # the first ten bytes hold flags, time and system
        (tmp_path / "a.nii.gz").write_bytes(content[:at] + bytes([content[at] ^ 0x10]) + content[at + 1 :])
        try:
            np.testing.assert_array_equal(read_nifti(tmp_path / "a.nii.gz").array, CT)
        except UserError as error:
            found.append(error.code)
    assert set(found) <= {"E-NII-CRC", "E-NII-TRUNCATED"} and len(found) >= len(content) - 12


def test_a_flipped_bit_that_nibabel_reads_as_wrong_voxels_is_found(tmp_path):
    """It stops when it has its voxels, before the checksum."""
    array = RNG.normal(0, 20, (64, 64, 40)).astype(np.int16)
    path = write_nifti(tmp_path / "a.nii.gz", Volume(array, AFFINE))
    content, silent = path.read_bytes(), 0
    for at in range(len(content) // 2, len(content) - 1000, 10007):
        path.write_bytes(content[:at] + bytes([content[at] ^ 0x10]) + content[at + 1 :])
        refuses("E-NII-CRC", lambda: read_nifti(path))
        with contextlib.suppress(Exception):
            silent += not np.array_equal(np.asarray(nibabel.load(path).dataobj), array)
    assert silent > 0


def test_the_checksum_counts(tmp_path):
    content = write_nifti(tmp_path / "a.nii.gz", Volume(CT, AFFINE)).read_bytes()
    (tmp_path / "a.nii.gz").write_bytes(content[:-8] + b"\0\0\0\0" + content[-4:])
    refuses("E-NII-CRC", lambda: read_nifti(tmp_path / "a.nii.gz"), says="checksum")
    (tmp_path / "a.nii.gz").write_bytes(content[:-4] + b"\0\0\0\0")
    refuses("E-NII-CRC", lambda: read_nifti(tmp_path / "a.nii.gz"), says="checksum")


def test_bytes_behind_the_voxels_are_noted(tmp_path):
    plain = write_nifti(tmp_path / "a.nii", Volume(CT, AFFINE)).read_bytes()
    (tmp_path / "a.nii").write_bytes(plain + b"x")
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(plain) + b"no gzip")
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(plain + b"xyz"))
    (tmp_path / "c.nii.gz").write_bytes(gzip.compress(plain) + bytes(512))  # a tape's padding is no data
    for name, says in {"a.nii": "1 bytes", "a.nii.gz": "no gzip stream", "b.nii.gz": "3 bytes", "c.nii.gz": ""}.items():
        found = read_nifti(tmp_path / name)
        np.testing.assert_array_equal(found.array, CT)
        assert _codes(found) == (["W-NII-TRAILING"] if says else [])
        assert not says or says in found.notes[0].what
    (tmp_path / "d.nii.gz").write_bytes(gzip.compress(plain[:400]) + b"no gzip")
    refuses(
        "E-NII-TRUNCATED", lambda: read_nifti(tmp_path / "d.nii.gz"), says="claims 240 bytes of voxels, there are 48"
    )


def test_a_bomb_costs_neither_memory_nor_time(tmp_path, monkeypatch):
    plain = write_nifti(tmp_path / "a.nii", Volume(CT, AFFINE)).read_bytes()
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(plain + bytes(2**22)))
    monkeypatch.setattr(gzipped, "MAX_TRAILING", 2**20)
    assert _peak(lambda: refuses("E-NII-TRAILING", lambda: read_nifti(tmp_path / "a.nii.gz"))) < 2**22


@pytest.mark.parametrize("dim", [{1: 20000, 2: 20000, 3: 20000}, {1: 32767, 2: 32767, 3: 32767, 4: 32767, 0: 4}])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_a_claim_is_refused_before_memory_is_spent(tmp_path, name, dim):
    path = _file(tmp_path / name, dim=dim)
    assert _peak(lambda: refuses("E-NII-SIZE", lambda: read_nifti(path), says=f"{MAX_BYTES:,}")) < 2**20
    refuses("E-NII-TRUNCATED", lambda: read_nifti(path, max_bytes=2**80))


def test_the_limit_counts_values_in_memory(tmp_path):
    path = _file(tmp_path / "a.nii")
    assert read_nifti(path, max_bytes=CT.nbytes).array.nbytes == CT.nbytes
    refuses("E-NII-SIZE", lambda: read_nifti(path, max_bytes=CT.nbytes - 1))
    path = _file(tmp_path / "b.nii", scl_slope=0.5)  # becomes float32
    assert read_nifti(path, max_bytes=2 * CT.nbytes).array.nbytes == 2 * CT.nbytes
    refuses("E-NII-SIZE", lambda: read_nifti(path, max_bytes=2 * CT.nbytes - 1))


def _peak(action) -> int:
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_what_is_no_file_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.nii")
    for path in (tmp_path, tmp_path / "pipe.nii", tmp_path / "none.nii", tmp_path / "a\0b.nii"):
        refuses("E-FILE-OPEN", lambda path=path: read_nifti(path))


def test_a_file_that_changes_is_refused(tmp_path):
    path = _file(tmp_path / "a.nii")

    def touched():
        with gzipped.opened(path) as source:
            source.take(10)
            os.utime(path, (1, 1))

    refuses("E-FILE-CHANGED", touched)


def test_names_that_lie_are_noted(tmp_path):
    content = _file(tmp_path / "a.nii").read_bytes()
    (tmp_path / "b.nii.gz").write_bytes(content)
    (tmp_path / "c.nii").write_bytes(gzip.compress(content))
    for name in ("b.nii.gz", "c.nii"):
        found = read_nifti(tmp_path / name)
        np.testing.assert_array_equal(found.array, CT)
        assert _codes(found) == ["W-NII-NAME"]


def test_a_pair_is_two_files_in_one_folder(tmp_path):
    nibabel.save(nibabel.Nifti1Pair(CT, AFFINE), tmp_path / "a.hdr")
    header, voxels = files_of(tmp_path / "a.img")
    voxels.rename(tmp_path / "elsewhere")
    refuses("E-NII-PAIR", lambda: read_nifti(header))
    refuses("E-FILE-OPEN", lambda: read_nifti(voxels))
    voxels.symlink_to(tmp_path / "elsewhere")
    refuses("E-NII-PAIR", lambda: read_nifti(header))
    voxels.unlink()
    voxels.write_bytes((tmp_path / "elsewhere").read_bytes()[:-1])
    refuses("E-NII-TRUNCATED", lambda: read_nifti(header))
    header.rename(tmp_path / "alone.nii")
    refuses("E-NII-PAIR", lambda: read_nifti(tmp_path / "alone.nii"), says="another file")


# header fields


@pytest.mark.parametrize(
    ("code", "says", "fields"),
    [
        ("E-NII-FORMAT", "Analyze", {"magic": b""}),
        ("E-NII-FORMAT", "begin", {"sizeof_hdr": 349}),
        ("E-NII-HEADER", "byte 0", {"vox_offset": 0}),
        ("E-NII-HEADER", "byte 348", {"vox_offset": 348}),
        ("E-NII-HEADER", "352.5", {"vox_offset": 352.5}),
        ("E-NII-HEADER", "nan", {"vox_offset": np.nan}),
        ("E-NII-HEADER", "byte 1e+30", {"vox_offset": 1e30}),
        ("E-NII-HEADER", "sform_code = 257", {"sform_code": 257}),
        ("E-NII-HEADER", "qform_code = -1", {"qform_code": -1}),
        ("E-NII-DIMENSIONS", "[0,", {"dim": {0: 0}}),
        ("E-NII-DIMENSIONS", "[1,", {"dim": {0: 1}}),
        ("E-NII-DIMENSIONS", "[8,", {"dim": {0: 8}}),
        ("E-NII-DIMENSIONS", "-6", {"dim": {1: -6}}),
        ("E-NII-DIMENSIONS", "0", {"dim": {2: 0}}),
        ("E-NII-DIMENSIONS", "[6, 5, 1, 2, 2]", {"dim": {0: 5, 3: 1, 4: 2, 5: 2}}),
        ("E-NII-DIMENSIONS", "1007", {"dim": {0: 5, 3: 1, 5: 3}, "intent_code": 1007}),
        ("E-NII-DIMENSIONS", "int16", {"dim": {0: 5, 3: 1, 5: 3}, "intent_code": 2003}),
        ("E-NII-DIMENSIONS", "[6, 5, 2, 1, 1, 1, 2]", {"dim": {0: 7, 3: 2, 7: 2}}),
        ("E-NII-DIMENSIONS", "2 time points", {"datatype": 128, "dim": {0: 4, 3: 1, 4: 2}}),
        ("E-NII-DIMENSIONS", "2 time points", {"datatype": 2, "dim": {0: 5, 3: 1, 4: 2, 5: 3}, "intent_code": 2003}),
        ("E-NII-DTYPE", "complex", {"datatype": 32}),
        ("E-NII-DTYPE", "one bit", {"datatype": 1}),
        ("E-NII-DTYPE", "128-bit", {"datatype": 1536}),
        ("E-NII-DTYPE", "unknown", {"datatype": 3}),
        ("E-NII-SCALE", "inf", {"scl_slope": np.inf}),
        ("E-NII-SCALE", "nan", {"scl_slope": 2, "scl_inter": np.nan}),
        ("E-NII-PLACE", "srow_x", {"srow_x": {0: 0}}),
        ("E-NII-PLACE", "nan", {"srow_z": {3: np.nan}}),
        ("E-NII-PLACE", "999999995904", {"srow_z": {3: 1e12}}),
        ("E-NII-PLACE", "srow_y", {"srow_x": [0.7, 0.7, 0, 12], "srow_y": [0.7, 0.7001, 0, 34]}),
        ("E-NII-PLACE", "quatern_b", {"sform_code": 0, "quatern_b": 1.5}),
        ("E-NII-PLACE", "nan", {"sform_code": 0, "quatern_d": np.nan}),
        ("E-NII-PLACE", "pixdim", {"sform_code": 0, "pixdim": {2: 0}}),
        ("E-NII-PLACE", "-0.5", {"sform_code": 0, "pixdim": {2: -0.5}}),
        ("E-NII-SPACING", "700 x 800 x 2500", {"xyzt_units": 1}),
        ("E-NII-SPACING", "0.0007 x", {"xyzt_units": 3}),
        ("E-NII-SPACING", "1e-06", {"sform_code": 0, "qform_code": 0, "pixdim": {1: 1e-6}}),
    ],
)
def test_a_header_that_cannot_be_trusted_is_refused(tmp_path, code, says, fields):
    refuses(code, lambda: read_nifti(_file(tmp_path / "a.nii", **fields)), says=says)


@pytest.mark.parametrize(
    ("codes", "says", "fields"),
    [
        (["W-NII-BITPIX"], "bitpix = 8", {"bitpix": 8}),
        (["W-NII-SCALE"], "scl_inter = 7", {"scl_slope": 0, "scl_inter": 7}),
        ([], "", {"scl_slope": np.nan, "scl_inter": np.nan}),
        (["W-NII-UNITS"], "unit 0", {"xyzt_units": 0}),
        (["W-NII-PIXDIM"], "0 x 0.8 x 2.5", {"pixdim": {1: 0}, "qform_code": 0}),
        (["W-NII-SFORM-QFORM", "W-NII-PIXDIM"], "damaged", {"pixdim": {1: 0}}),
        (["W-NII-SFORM-QFORM"], "damaged", {"quatern_b": 2}),
        (["W-NII-SFORM-QFORM"], "5 mm and 0 degrees", {"qoffset_x": -17}),
        (["W-NII-SFORM-QFORM"], "180 degrees", {"quatern_b": 1}),
        (["W-NII-SFORM-QFORM"], "1.15 degrees", {"quatern_d": 0.01}),
        ([], "", {"qoffset_x": -12.9}),
        ([], "", {"pixdim": {0: 0}}),
        ([], "", {"dim": {0: 7}}),
    ],
)
def test_what_is_careless_is_noted_and_the_sform_stands(tmp_path, codes, says, fields):
    found = read_nifti(_file(tmp_path / "a.nii", **fields))
    assert _codes(found) == codes
    assert not codes or says in found.notes[0].what
    np.testing.assert_array_equal(found.array, CT)
    np.testing.assert_allclose(found.affine, AFFINE, rtol=1e-6)


@pytest.mark.parametrize(("unit", "factor", "name"), [(1, 1e3, "metres"), (3, 1e-3, "microns")])
@pytest.mark.parametrize("form", ["sform_code", "qform_code"])
def test_lengths_become_millimetres(tmp_path, unit, factor, name, form):
    scaled = AFFINE.copy()
    scaled[:3] /= factor
    other = {"sform_code": "qform_code", "qform_code": "sform_code"}[form]
    found = read_nifti(_file(tmp_path / "a.nii", affine=scaled, xyzt_units=unit, **{other: 0}))
    np.testing.assert_allclose(found.affine, AFFINE, rtol=1e-5)
    assert _codes(found) == ["R-NII-UNITS"] and name in found.notes[0].what
    flat = _file(tmp_path / "b.nii", affine=scaled, xyzt_units=unit, sform_code=0, qform_code=0)
    assert read_nifti(flat).spacing == pytest.approx((0.7, 0.8, 2.5))


def test_without_codes_there_is_no_place(tmp_path):
    found = read_nifti(_file(tmp_path / "a.nii", sform_code=0, qform_code=0))
    assert found.affine is None and found.spacing == pytest.approx((0.7, 0.8, 2.5))
    assert _codes(found) == ["W-NII-NO-PLACE"] and "0.7 x 0.8 x 2.5" in found.notes[0].what
    for size in (0, -1, np.nan):
        found = read_nifti(_file(tmp_path / "a.nii", sform_code=0, qform_code=0, pixdim={2: size}))
        assert found.affine is None and found.spacing is None
        assert _codes(found) == ["W-NII-NO-PLACE"] and "no voxel size" in found.notes[0].what


def test_a_planes_third_size_does_not_count(tmp_path):
    plane = CT[:, :, :1]
    found = read_nifti(_file(tmp_path / "a.nii", plane, sform_code=0, pixdim={3: 0}, dim={0: 2, 3: 0}))
    np.testing.assert_array_equal(found.array, plane)
    np.testing.assert_allclose(found.affine[:, [0, 1, 3]], AFFINE[:, [0, 1, 3]], rtol=1e-6)
    found = read_nifti(_file(tmp_path / "a.nii", plane, sform_code=0, qform_code=0, pixdim={3: 0}))
    assert found.spacing == pytest.approx((0.7, 0.8))


@pytest.mark.parametrize(("unit", "step"), [(8, 2.5), (16, 0.0025), (24, 2.5e-6), (0, None), (32, None)])
def test_time_has_a_unit_or_none(tmp_path, unit, step):
    series = RNG.integers(0, 99, (*SHAPE, 2)).astype(np.int16)
    found = read_nifti(_file(tmp_path / "a.nii", series, pixdim={4: 2.5}, xyzt_units=2 | unit))
    np.testing.assert_array_equal(found.array, series)
    assert found.time_step_s == (step if step is None else pytest.approx(step))
    assert _codes(found) == ([] if step else ["W-NII-TIME"])


# values


@pytest.mark.parametrize(
    ("kind", "slope", "inter", "expected"),
    [
        ("int16", 1, -1024, "int16"),
        ("uint16", 1, -1024, "int16"),
        ("uint8", 150, 0, "int16"),
        ("uint8", 2000, 0, "int32"),
        ("uint8", -1, 255, "uint8"),
        ("int32", 2.0**30, -5, "int64"),
        ("uint8", 0.01, 0, "float32"),
        ("int16", 2.5, 1, "float32"),
        ("int32", 0.5, 0, "float64"),
        ("int64", 2, 0, "float64"),
        ("float32", 2, 1, "float32"),
        ("float64", 0.1, 0, "float64"),
        ("uint8", 2.0**40, 0, "float32"),
    ],
)
def test_scaled_values_are_nibabels_and_integers_where_they_fit(tmp_path, kind, slope, inter, expected):
    stored = RNG.integers(0, 200, SHAPE).astype(kind)
    path = _file(tmp_path / "a.nii", stored, scl_slope=slope, scl_inter=inter)
    found = read_nifti(path)
    theirs = nibabel.load(path).get_fdata(dtype=np.float64)
    assert found.array.dtype == expected
    np.testing.assert_array_equal(found.array, theirs.astype(expected))


def test_three_planes_of_bytes_are_colour(tmp_path):
    colour = RNG.integers(0, 256, (6, 5, 1, 3), dtype=np.uint8)
    found = read_nifti(_file(tmp_path / "a.nii", colour, dim={0: 5, 4: 1, 5: 3}, intent_code=2003))
    assert found.colour
    np.testing.assert_array_equal(found.array, colour)


def test_opaque_alpha_is_dropped_and_any_other_refused(tmp_path):
    bytes_ = RNG.integers(0, 256, (4, 6, 5, 1), dtype=np.uint8)
    bytes_[3] = 255
    fields = {"datatype": 2304, "bitpix": 32, "dim": {0: 3, 1: 6, 2: 5, 3: 1}}
    found = read_nifti(_file(tmp_path / "a.nii", bytes_, **fields))
    assert found.colour
    np.testing.assert_array_equal(found.array, np.moveaxis(bytes_[:3], 0, -1))
    bytes_[3, 2, 2, 0] = 254
    refuses("E-NII-DTYPE", lambda: read_nifti(_file(tmp_path / "a.nii", bytes_, **fields)), says="transparent")


def test_numbers_beyond_64_bits_with_a_sign_are_refused(tmp_path):
    array = np.arange(120, dtype=np.uint64).reshape(SHAPE)
    array[0, 0, 0] = 2**63
    refuses("E-NII-DTYPE", lambda: read_nifti(_file(tmp_path / "a.nii", array)), says=str(2**63))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_refused_or_filled_on_request(tmp_path, value):
    array = RNG.random((20, 10, 10)).astype(np.float32) + 5
    array[3, 4, 5] = array[0, 0, 0] = value
    path = _file(tmp_path / "a.nii", array)
    refuses("E-NII-NAN", lambda: read_nifti(path), says="2 of 2,000 voxels (0.1 %)")
    found = read_nifti(path, nan="fill")
    bad = ~np.isfinite(array)
    np.testing.assert_array_equal(found.array, np.where(bad, array[~bad].min(), array))
    assert _codes(found) == ["R-NII-NAN"] and "2 of 2,000" in found.notes[0].what
    array[1, 1, 1] = value
    refuses("E-NII-NAN", lambda: read_nifti(_file(path, array), nan="fill"), says="0.15 %")
    refuses("E-NII-NAN", lambda: read_nifti(_file(path, array), labels=True))


def test_a_slope_that_overflows_is_no_number(tmp_path):
    array = RNG.random(SHAPE).astype(np.float32) * 1e30
    refuses("E-NII-NAN", lambda: read_nifti(_file(tmp_path / "a.nii", array, scl_slope=1e30)))


@pytest.mark.parametrize("value", [0, -1000])
def test_one_value_is_no_image_but_may_be_a_mask(tmp_path, value):
    path = _file(tmp_path / "a.nii", np.full(SHAPE, value, np.int16))
    refuses("E-NII-CONSTANT", lambda: read_nifti(path), says=f"120 voxels are {value}")
    assert (read_nifti(path, labels=True).array == value).all()
