"""Voxels: every way of storing them gives the same values, and what cannot be trusted is refused."""

import os
from dataclasses import replace

import numpy as np
import pydicom
import pytest
from dicom_made import (
    BIG_ENDIAN,
    DEFLATED,
    IMPLICIT,
    change,
    codes,
    ct,
    item,
    loaded,
    notes,
    pattern,
    planned,
    raw,
    write,
    write_all,
)
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels import compress
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless

from medmtl.errors import UserError
from medmtl.io.dicom import decode
from medmtl.io.dicom.codestream import stream_fault
from medmtl.io.dicom.header import read_header
from medmtl.io.dicom.load import load
from medmtl.io.dicom.resample import regridded
from medmtl.io.dicom.series import Policy, Regrid, plan

PLAIN = {"ImagePositionPatient": None, "ImageOrientationPatient": None, "PixelSpacing": None}
GREY = {"Modality": "OT", "RescaleSlope": None, "RescaleIntercept": None, "RescaleType": None, **PLAIN}


def image(volume):
    """The only slice as it would be displayed: [rows, columns]."""
    return volume.array[:, :, 0].swapaxes(0, 1)[::-1]


def _fails(stack, code):
    with pytest.raises(UserError) as error:
        load(stack)
    assert error.value.code == code
    return error.value


def only(folder, ds, syntax="1.2.840.10008.1.2.1"):
    found = plan([read_header(write(folder / "a", ds, syntax))])
    assert not found.refused, found.refused[0].error
    (stack,) = found.volumes
    return stack


def compressed(ds, syntax):
    ds.file_meta = pydicom.dataset.FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
    compress(ds, syntax, generate_instance_uid=False)
    return ds


@pytest.mark.parametrize("syntax", [IMPLICIT, BIG_ENDIAN, DEFLATED, RLELossless, JPEGLSLossless, JPEG2000Lossless])
@pytest.mark.parametrize("dtype", ["u2", "i2", "u1"])
def test_every_encoding_gives_the_same_voxels(tmp_path, syntax, dtype):
    pixels = pattern(70, 66, high=256 if dtype == "u1" else 2048, dtype=dtype)
    bits = {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7} if dtype == "u1" else {}
    ds = ct(pixels, **bits)
    if syntax == BIG_ENDIAN:
        ds.PixelData = pixels.astype(pixels.dtype.newbyteorder(">")).tobytes()
        ds["PixelData"].VR = "OB" if dtype == "u1" else "OW"
    elif syntax not in (IMPLICIT, DEFLATED):
        ds = compressed(ds, syntax)
    volume = load(only(tmp_path, ds, syntax))
    np.testing.assert_array_equal(image(volume), pixels.astype(int) - 1024)
    assert volume.array.dtype == np.int16 and volume.array.flags.f_contiguous and volume.units == "HU"


@pytest.mark.parametrize(
    ("dtype", "bits", "slope", "intercept", "values", "expected"),
    [
        ("u2", 12, 1, -1024, (0, 4095), np.int16),
        ("u2", 16, 1, -1024, (0, 3000), np.int16),  # the bits could hold more, the image does not
        ("u2", 16, 1, -1024, (0, 65535), np.int32),
        ("u2", 16, 1, 0, (0, 65535), np.uint16),
        ("i2", 16, 1, -1024, (-2000, 3000), np.int16),
        ("i2", 16, 1, -1024, (-32768, 3000), np.int32),
        ("i2", 16, 2, 1, (-300, 3000), np.int16),
        ("u2", 12, 0.5, 0, (0, 4095), np.float32),
        ("u2", 12, 1, -1024.5, (0, 4095), np.float32),
        ("u1", 8, 1, 0, (0, 255), np.uint8),
        ("u1", 8, 1, -1024, (0, 255), np.int16),
        ("u1", 8, 300, 0, (0, 255), np.int32),
        ("i4", 32, 1, 0, (-70000, 70000), np.int32),
        ("u4", 32, 1, 0, (0, 2**32 - 1), np.float64),
    ],
)
def test_the_type_holds_every_value(tmp_path, dtype, bits, slope, intercept, values, expected):
    pixels = np.linspace(*values, 30).astype(dtype).reshape(6, 5)
    size = 8 * pixels.dtype.itemsize
    ds = ct(
        pixels,
        Modality="MR",
        BitsAllocated=size,
        BitsStored=bits,
        HighBit=bits - 1,
        RescaleSlope=slope,
        RescaleIntercept=intercept,
    )
    volume = load(only(tmp_path, ds))
    assert volume.array.dtype == expected
    np.testing.assert_allclose(image(volume), pixels.astype(np.float64) * slope + intercept, rtol=1e-6)


def test_each_slice_is_scaled_by_its_own_slope(tmp_path):
    slices = [ct(number=n, Modality="PT", Units="BQML", RescaleSlope=0.5 + n, RescaleIntercept=0) for n in range(3)]
    volume = loaded(tmp_path, slices)
    for n in range(3):
        np.testing.assert_allclose(volume.array[:, :, n].T[::-1], pattern(seed=n) * (0.5 + n), rtol=1e-6)
    assert volume.units == "BQML"


@pytest.mark.parametrize(("stored", "high"), [(12, 11), (12, 15), (10, 12)])
@pytest.mark.parametrize("signed", [False, True])
def test_bits_beside_the_stored_ones_are_removed(tmp_path, stored, high, signed):
    low, top = (-(1 << (stored - 1)), 1 << (stored - 1)) if signed else (0, 1 << stored)
    true = pattern(low=low, high=top, dtype=np.int32)
    below = high + 1 - stored
    dirt = pattern(seed=9, high=65536, dtype=np.int64)
    mask = ((1 << stored) - 1) << below
    dirty = (((true.astype(np.int64) << below) & mask) | (dirt & ~mask & 0xFFFF)).astype(np.uint16)
    ds = ct(dirty, BitsStored=stored, HighBit=high, PixelRepresentation=int(signed), RescaleIntercept=0)
    np.testing.assert_array_equal(image(load(only(tmp_path, ds))), true)


def test_monochrome1_is_turned_over_once_after_the_rescale(tmp_path):
    pixels = pattern()
    ds = ct(
        pixels,
        **{
            **PLAIN,
            "Modality": "CR",
            "PhotometricInterpretation": "MONOCHROME1",
            "RescaleSlope": 2,
            "RescaleIntercept": 10,
        },
    )
    volume = load(only(tmp_path, ds))
    np.testing.assert_array_equal(image(volume), (2 * 4095 + 10) + (0 + 10) - (2 * pixels.astype(int) + 10))
    assert "R-DCM-INVERTED" in notes(volume)


def test_hounsfield_units_are_not_turned_over(tmp_path):
    volume = load(only(tmp_path, ct(PhotometricInterpretation="MONOCHROME1")))
    np.testing.assert_array_equal(image(volume), pattern().astype(int) - 1024)
    assert notes(volume) == {"W-DCM-MONOCHROME1"}


@pytest.mark.parametrize(
    ("modality", "padding", "limit"),
    [("CT", -2000, None), ("CT", -2000, -1990), ("MR", -2000, None), ("MR", 3000, None)],
)
def test_padding_becomes_background(tmp_path, modality, padding, limit):
    pixels = pattern(low=3, high=900, dtype=np.int16)
    outside = np.zeros(pixels.shape, bool)
    outside[:2] = True
    stored = np.where(outside, padding, pixels).astype(np.int16)
    if limit is not None:
        stored[0] = limit
    ds = ct(stored, Modality=modality, BitsStored=16, HighBit=15, RescaleIntercept=0, RescaleType=None)
    for keyword, value in (("PixelPaddingValue", padding), ("PixelPaddingRangeLimit", limit)):
        if value is not None:
            ds.add_new(keyword, "SS", value)
    volume = load(only(tmp_path, ds))
    low = pixels[2:].min() if modality == "MR" else -1024
    np.testing.assert_array_equal(image(volume), np.where(outside, low, pixels))
    assert "R-DCM-PADDING" in notes(volume) and "10 padding pixels" in volume.notes[-1].what


def test_padding_of_zero_stays_where_it_is_no_signal(tmp_path):
    pixels = pattern(low=5)
    pixels[0] = 0
    volume = load(only(tmp_path, ct(pixels, Modality="MR", RescaleIntercept=0, PixelPaddingValue=0)))
    np.testing.assert_array_equal(image(volume), pixels)
    assert not volume.notes


def test_inverted_padding_is_dark(tmp_path):
    pixels = pattern(low=5, high=900)
    pixels[0] = 0
    volume = load(
        only(
            tmp_path,
            ct(pixels, **{**GREY, "Modality": "MG", "PhotometricInterpretation": "MONOCHROME1"}, PixelPaddingValue=0),
        )
    )
    assert image(volume)[0].max() == image(volume)[1:].min()


def test_a_modality_table_replaces_the_rescale(tmp_path):
    pixels = pattern(high=16)
    table = (np.arange(10) * 3 + 7).astype(np.uint16)
    ds = ct(pixels, **GREY)
    ds.ModalityLUTSequence = item(LUTDescriptor=[10, 2, 16], ModalityLUTType="US", LUTData=table.tobytes())
    ds.ModalityLUTSequence[0]["LUTData"].VR = "OW"
    volume = load(only(tmp_path, ds))
    np.testing.assert_array_equal(image(volume), table[np.clip(pixels.astype(int) - 2, 0, 9)])


def test_windows_change_nothing(tmp_path):
    volume = load(only(tmp_path, ct(WindowCenter=[40, 400], WindowWidth=[80, 2000])))
    np.testing.assert_array_equal(image(volume), pattern().astype(int) - 1024)


def test_a_ct_without_rescale_is_believed_only_if_plausible(tmp_path):
    hu = pattern(low=-1000, high=900, dtype=np.int16)
    ds = ct(hu, BitsStored=16, HighBit=15, RescaleSlope=None, RescaleIntercept=None)
    volume = load(only(tmp_path / "a", ds))
    np.testing.assert_array_equal(image(volume), hu)
    assert notes(volume) == {"W-DCM-HU-ASSUMED"}
    _fails(only(tmp_path / "b", ct(RescaleSlope=None, RescaleIntercept=None)), "E-DCM-RESCALE")


def colour(pixels, **changes):
    fields = {
        "SamplesPerPixel": 3,
        "PhotometricInterpretation": "RGB",
        "PlanarConfiguration": 0,
        "Rows": 6,
        "Columns": 4,
    }
    bits = {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}
    return ct(
        pixels.astype(np.uint8), **{**GREY, **fields, **bits, **changes}, PixelData=pixels.astype(np.uint8).tobytes()
    )


RGB = np.random.default_rng(3).integers(0, 256, (6, 4, 3))


@pytest.mark.parametrize("planar", [0, 1])
def test_rgb_by_pixel_and_by_plane(tmp_path, planar):
    pixels = RGB if planar == 0 else RGB.transpose(2, 0, 1)
    volume = load(only(tmp_path, colour(pixels, PlanarConfiguration=planar)))
    assert volume.colour and volume.array.dtype == np.uint8 and volume.array.shape == (4, 6, 1, 3)
    np.testing.assert_array_equal(image(volume), RGB)


def test_ybr_full_becomes_rgb(tmp_path):
    """PS3.3 C.7.6.3.1.2: the inverse of Y = 0.299 R + 0.587 G + 0.114 B, Cb = (B - Y) / 1.772, Cr = (R - Y) / 1.402."""
    y = RGB @ [0.299, 0.587, 0.114]
    ybr = np.stack([y, (RGB[..., 2] - y) / 1.772 + 128, (RGB[..., 0] - y) / 1.402 + 128], -1)
    volume = load(only(tmp_path, colour(np.clip(np.round(ybr), 0, 255), PhotometricInterpretation="YBR_FULL")))
    assert np.abs(image(volume).astype(int) - RGB).max() <= 2


def test_ybr_422_shares_its_chroma(tmp_path):
    y = np.random.default_rng(1).integers(60, 200, (6, 4))
    packed = np.stack([y[:, ::2], y[:, 1::2], np.full((6, 2), 128), np.full((6, 2), 128)], -1)
    ds = colour(RGB, PhotometricInterpretation="YBR_FULL_422")
    ds.PixelData = packed.astype(np.uint8).tobytes()
    volume = load(only(tmp_path, ds))
    np.testing.assert_array_equal(image(volume), np.repeat(y[..., None], 3, -1))


@pytest.mark.parametrize("bits", [8, 16])
def test_a_palette_becomes_rgb(tmp_path, bits):
    index = np.random.default_rng(2).integers(0, 20, (6, 5)).astype(np.uint8)
    table = np.random.default_rng(4).integers(0, 256, (12, 3))
    ds = ct(index, **GREY, PhotometricInterpretation="PALETTE COLOR")
    change(ds, BitsAllocated=8, BitsStored=8, HighBit=7, PixelData=index.tobytes())
    stored = (table * 257).astype(np.uint16) if bits == 16 else table.astype(np.uint8)
    for n, name in enumerate(("Red", "Green", "Blue")):
        setattr(ds, f"{name}PaletteColorLookupTableDescriptor", [12, 4, bits])
        setattr(ds, f"{name}PaletteColorLookupTableData", stored[:, n].tobytes())
        ds[f"{name}PaletteColorLookupTableData"].VR = "OW"
    volume = load(only(tmp_path, ds))
    np.testing.assert_array_equal(image(volume), table[np.clip(index.astype(int) - 4, 0, 11)])
    outside = np.count_nonzero((index < 4) | (index > 15))
    assert f"{outside} pixels" in next(note.what for note in volume.notes if note.code == "W-DCM-PALETTE")
    del ds.BluePaletteColorLookupTableData
    _fails(only(tmp_path / "b", ds), "E-DCM-PALETTE")


def test_one_bit_pixels(tmp_path):
    bits = np.random.default_rng(5).integers(0, 2, (8, 8)).astype(np.uint8)
    ds = ct(bits, **GREY, BitsAllocated=1, BitsStored=1, HighBit=0)
    ds.PixelData = np.packbits(bits, bitorder="little").tobytes()
    volume = load(only(tmp_path, ds))
    np.testing.assert_array_equal(image(volume), bits)
    assert volume.array.dtype == np.uint8


@pytest.mark.parametrize(("element", "bits"), [("FloatPixelData", 32), ("DoubleFloatPixelData", 64)])
def test_float_pixels(tmp_path, element, bits):
    values = np.random.default_rng(6).standard_normal((6, 5)).astype(f"<f{bits // 8}")
    ds = ct(**{**GREY, "SOPClassUID": "1.2.840.10008.5.1.4.1.1.30", "PixelData": None}, BitsAllocated=bits)
    setattr(ds, element, values.tobytes())
    ds.SharedFunctionalGroupsSequence = item(
        RealWorldValueMappingSequence=item(RealWorldValueSlope=2.0, RealWorldValueIntercept=1.0)
    )
    volume = load(only(tmp_path, ds))
    assert volume.array.dtype.itemsize * 8 == bits
    np.testing.assert_allclose(image(volume), values * 2 + 1, rtol=1e-6)


def test_a_file_that_changed_is_not_read(tmp_path):
    stack = only(tmp_path, ct())
    os.utime(tmp_path / "a", ns=(1, 1))
    assert _fails(stack, "E-FILE-CHANGED").where == "a"
    (tmp_path / "a").unlink()
    _fails(stack, "E-FILE-OPEN")


@pytest.mark.parametrize(
    ("syntax", "words"),
    [
        ("1.2.840.10008.1.2.8.1", "no decoder is known"),
        ("1.2.840.10008.1.2.4.98", "no decoder is known"),
        ("1.2.3", "1.2.3"),
    ],
)
def test_a_syntax_without_a_decoder_is_named(tmp_path, syntax, words):
    ds = ct()
    ds.PixelData = encapsulate([ds.PixelData])
    path = write(tmp_path / "a", ds, JPEGLSLossless)
    known = str(JPEGLSLossless).encode()
    path.write_bytes(path.read_bytes().replace(known, syntax.encode().ljust(len(known), b"\0")))
    (stack,) = plan([read_header(path)]).volumes
    error = _fails(stack, "E-DCM-CODEC")
    assert words in error.what and syntax in error.what


def test_a_decoder_that_is_not_installed_is_named(tmp_path, monkeypatch):
    class Absent:
        is_available = False

    monkeypatch.setattr(decode, "get_decoder", lambda uid: Absent())
    error = _fails(only(tmp_path, compressed(ct(pattern(20, 20)), JPEGLSLossless), JPEGLSLossless), "E-DCM-CODEC")
    assert "pip install pyjpegls" in error.what and "1.2.840.10008.1.2.4.80" in error.what


@pytest.mark.parametrize("syntax", [JPEGLSLossless, JPEG2000Lossless, RLELossless])
def test_a_stream_that_was_cut_before_it_was_packed(tmp_path, syntax):
    """The file is whole, the frame in it is not: some decoders would fill the rest with grey."""
    ds = compressed(ct(pattern(70, 66)), syntax)
    (frame,) = generate_frames(ds.PixelData, number_of_frames=1)
    for keep in (0.3, 0.9):
        ds.PixelData = encapsulate([frame[: int(keep * len(frame)) // 2 * 2]])
        code = "E-DCM-PIXELS" if syntax == RLELossless else "E-DCM-TRUNCATED"
        _fails(only(tmp_path / f"{keep}", ds, syntax), code)


@pytest.mark.parametrize("syntax", [JPEGLSLossless, JPEG2000Lossless])
def test_a_stream_of_another_size_is_refused_before_it_is_decoded(tmp_path, syntax):
    ds = compressed(ct(pattern(70, 66)), syntax)
    change(ds, Rows=20)
    assert "66 x 70" in _fails(only(tmp_path, ds, syntax), "E-DCM-PIXELS").what


JPEG = bytes.fromhex(
    "ffd8 ffe0000400 00 ffc3000b 10 0028 0028 01 01 11 00 ffc40003 00 ffda0008 01 01 00 01 00 00 1234ff00ffd05678 ffd9"
)


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("", "", None),
        ("ffd9", "ffd9 0000", None),  # padding
        ("0028002801", "0028 0029 01", "E-DCM-PIXELS"),
        ("0028002801", "0028 0028 03", "E-DCM-PIXELS"),
        ("ffc40003", "00c40003", "E-DCM-PIXELS"),
        ("ffc40003", "ffc4ffff", "E-DCM-PIXELS"),
        ("ffc3000b", "ff02000b", "E-DCM-PIXELS"),
        ("ff00", "ff29", "E-DCM-PIXELS"),  # a marker in the data
        ("5678 ffd9", "5678", "E-DCM-TRUNCATED"),
        ("ffd8", "ffd7", "E-DCM-PIXELS"),
    ],
)
def test_jpeg_streams_are_walked_before_a_decoder_sees_them(tmp_path, old, new, fault):
    header = read_header(write(tmp_path / "a", ct(pattern(40, 40))))
    assert header.pixels is not None
    pixels = replace(header.pixels, syntax="1.2.840.10008.1.2.4.70")
    stream = JPEG.replace(bytes.fromhex(old), bytes.fromhex(new), 1) if old else JPEG
    found = stream_fault(stream, pixels)
    assert (found and found[0]) == fault


def test_damaged_compressed_pixels_never_crash(tmp_path):
    """Bytes inside the fragments, turned at random: a volume or a code, never anything else."""
    rng = np.random.default_rng(7)
    seen = set()
    for syntax in (JPEGLSLossless, JPEG2000Lossless, RLELossless):
        path = write(tmp_path / "a", compressed(ct(pattern(70, 66)), syntax), syntax)
        header = read_header(path)
        assert header.pixels is not None
        content = path.read_bytes()
        for _ in range(40):
            damaged = bytearray(content)
            for at in rng.integers(header.pixels.offset + 16, len(content), 3):
                damaged[at] = rng.integers(256)
            path.write_bytes(damaged)
            seen |= {_result(stack) for stack in plan([read_header(path)]).volumes}
    assert {"E-DCM-PIXELS", (66, 70, 1)} <= seen <= {"E-DCM-PIXELS", "E-DCM-TRUNCATED", (66, 70, 1)}


def _result(stack):
    try:
        return load(stack).array.shape
    except UserError as error:
        return error.code


def test_a_volume_is_one_array_in_the_order_of_a_nifti_file(tmp_path):
    slices = [ct(number=n) for n in range(4)]
    volume = loaded(tmp_path, slices)
    assert volume.array.flags.f_contiguous and volume.array.flags.owndata
    flat = volume.array.reshape(-1, order="F")
    np.testing.assert_array_equal(
        flat, np.concatenate([pattern(seed=n)[::-1].ravel() for n in range(4)]).astype(int) - 1024
    )


def test_regridding_interpolates_and_never_extrapolates():
    ramp = np.asfortranarray(np.broadcast_to(np.arange(4.0)[:, None, None] * 10, (4, 3, 2)).astype(np.float32))
    regrid = Regrid((0.0, 3.0), ((0.0, 0.0), (1.5, 0.0)), 1.0, 4)
    out = regridded(ramp, regrid, colour=False, air=-1000)
    assert out.shape == (6, 3, 4)
    np.testing.assert_allclose(out[:, 0, 0], [0, 10, 20, 30, -1000, -1000])
    np.testing.assert_allclose(out[:, 0, 3], [-1000, -1000, 5, 15, 25, -1000])  # shifted by 1.5: between its pixels
    np.testing.assert_allclose(
        out[:, 0, 1], [-1000, -1000, (20 * 2 + 5) / 3, (30 * 2 + 15) / 3, -1000, -1000], rtol=1e-6
    )


def test_resampled_colour_and_time(tmp_path):
    places = (0, 2, 6, 8)
    placed = {"ImageOrientationPatient": [1, 0, 0, 0, 1, 0], "PixelSpacing": [1, 1]}

    def at(z):
        ds = change(colour(np.full((6, 4, 3), 20 * z)), SOPInstanceUID=f"1.{z + 1}", **placed)
        return change(ds, ImagePositionPatient=[0, 0, z])

    volume = loaded(tmp_path / "a", [at(z) for z in places], Policy(gap="resample"))
    np.testing.assert_array_equal(volume.array[1, 2, :, 0], [0, 40, 80, 120, 160])
    grey = [ct(np.full((6, 5), 100 * z + t, np.uint16), number=10 * t + z) for t in (1, 2) for z in places]
    for n, ds in enumerate(grey):
        change(ds, ImagePositionPatient=[0, 0, places[n % 4]], TemporalPositionIdentifier=1 + n // 4)
    volume = loaded(tmp_path / "b", grey, Policy(gap="resample", time="stack"))
    assert volume.array.shape == (5, 6, 5, 2)
    np.testing.assert_array_equal(volume.array[1, 2] + 1024, np.arange(0, 900, 200)[:, None] + [1, 2])


def test_truncation_after_planning_is_refused(tmp_path):
    headers = write_all(tmp_path, [ct(number=n) for n in range(3)])
    (stack,) = plan(headers).volumes
    headers[1].path.write_bytes(headers[1].path.read_bytes()[:-5])
    _fails(stack, "E-FILE-CHANGED")


def test_nan_in_a_rescale_is_found_however_it_is_written(tmp_path):
    ds = raw(ct(), "RescaleSlope", b"nan ")
    assert codes(planned(tmp_path, [ds])) == ["E-DCM-RESCALE"]
