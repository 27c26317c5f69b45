"""Pictures lose what identifies and nothing else."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from medmtl.errors import UserError
from medmtl.ingest.rasters import check_depth, clean, pixels, turned

SECRET = b"DOE^JANE"


@pytest.fixture
def picture():
    return np.random.default_rng(0).integers(0, 256, (21, 34, 3), dtype=np.uint8)


def _exif(**tags):
    exif = Image.Exif()
    exif[0x013B] = "DOE^JANE"  # artist
    exif.update({0x0112: 1, **tags.get("tags", {})})
    exif.get_ifd(0x8825)[1] = "DOE^JANE"  # GPS
    return exif


def _jpeg(picture, **options):
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "JPEG", **options)
    return stream.getvalue()


def _png(picture, **options):
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "PNG", **options)
    return stream.getvalue()


def _decoded(content):
    return np.asarray(Image.open(io.BytesIO(content)))


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"quality": 100, "subsampling": 0}, {"dpi": (72, 72)}])
def test_a_jpeg_loses_its_metadata_and_no_pixel(picture, options):
    whole = _jpeg(picture, exif=_exif(), comment=SECRET, xmp=b"<x>DOE^JANE</x>", icc_profile=b"profile", **options)
    dirty = whole + b"trailing " + SECRET
    cleaned = clean(dirty)
    assert SECRET in whole and SECRET not in cleaned.content
    assert cleaned.removed == ("EXIF", "XMP", "bytes after the end", "comment")
    np.testing.assert_array_equal(_decoded(cleaned.content), _decoded(whole))
    assert Image.open(io.BytesIO(cleaned.content)).info["icc_profile"] == b"profile"


def test_a_jpeg_with_nothing_to_lose_is_kept_byte_by_byte(picture):
    plain = _jpeg(picture)
    assert clean(plain).content == plain and clean(plain).removed == ()


def test_a_grey_and_a_cmyk_jpeg(picture):
    grey = _jpeg(picture[..., 0], exif=_exif())
    np.testing.assert_array_equal(_decoded(clean(grey).content), _decoded(grey))
    stream = io.BytesIO()
    Image.fromarray(picture).convert("CMYK").save(stream, "JPEG", comment=SECRET)
    np.testing.assert_array_equal(_decoded(clean(stream.getvalue()).content), _decoded(stream.getvalue()))


def test_a_png_loses_its_metadata_and_no_pixel(picture):
    info = PngImagePlugin.PngInfo()
    info.add_text("Author", "DOE^JANE")
    info.add_itxt("Note", "DOE^JANE", zip=True)
    chunk = b"prVt" + SECRET
    whole = _png(picture, pnginfo=info, exif=_exif(), dpi=(72, 72), icc_profile=b"profile")
    own = struct.pack(">I", len(SECRET)) + chunk + struct.pack(">I", zlib.crc32(chunk))
    end = whole.rindex(b"IEND") - 4
    dirty = whole[:end] + own + whole[end:] + SECRET
    cleaned = clean(dirty)
    assert SECRET not in cleaned.content
    assert cleaned.removed == ("bytes after the end", "eXIf", "iTXt", "prVt", "tEXt")
    np.testing.assert_array_equal(_decoded(cleaned.content), picture)
    assert Image.open(io.BytesIO(cleaned.content)).info["icc_profile"] == b"profile"


@pytest.mark.parametrize("make", [_png, _jpeg])
def test_every_cut_ends_in_a_reason(picture, make):
    content = make(picture, exif=_exif())
    for length in range(12, len(content), 97):
        with pytest.raises(UserError, match="E-IMG-DAMAGED"):
            clean(content[:length])


def test_a_flipped_bit_in_a_png_is_found(picture):
    content = bytearray(_png(picture))
    content[len(content) // 2] ^= 1
    with pytest.raises(UserError, match="E-IMG-DAMAGED"):
        clean(bytes(content))


def test_a_tiff_is_written_anew():
    assert clean(b"II*\0rest") is None


@pytest.mark.parametrize(("orientation", "expected"), [(1, False), (6, True), (3, True)])
def test_orientation(tmp_path, picture, orientation, expected):
    path = tmp_path / "a.jpg"
    path.write_bytes(_jpeg(picture, exif=_exif(tags={0x0112: orientation})))
    assert turned(path) == expected
    assert pixels(path).shape == ((34, 21, 3) if orientation == 6 else (21, 34, 3))


def test_pixels_are_exact(tmp_path, picture):
    deep = np.random.default_rng(1).integers(0, 65536, (9, 8), dtype=np.uint16)
    for array in (picture, picture[..., 0], deep):
        path = tmp_path / "a.png"
        path.write_bytes(_png(array))
        assert pixels(path).dtype == array.dtype
        np.testing.assert_array_equal(pixels(path), array)


def test_half_of_sixteen_bit_colour_is_never_lost(tmp_path):
    rows = b"".join(b"\0" + bytes(range(24)) for _ in range(4))  # 4 x 4, RGB, 16 bits
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    content = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
    path = tmp_path / "a.png"
    path.write_bytes(content)
    assert clean(content).content == content
    with pytest.raises(UserError, match="E-RAS-DEPTH"):
        check_depth(path)
