"""Laws of reading and writing raster images: exact values in, nothing guessed, every damaged file a named error."""

import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medmtl.errors import SafetyRefusal, UserError
from medmtl.io import raster
from medmtl.io.raster import pages, read_image, read_mask, write_png

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)
GREY = RNG.integers(0, 256, (5, 7), dtype=np.uint8)
GREY16 = RNG.integers(0, 65536, (5, 7)).astype(np.uint16)


def _saved(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


@pytest.mark.parametrize(("array", "channels", "scale"), [(RGB, 3, 255), (GREY, 1, 255), (GREY16, 1, 65535)])
def test_what_is_written_is_read(tmp_path: Path, array: np.ndarray, channels: int, scale: int) -> None:
    image = read_image(write_png(tmp_path / "a.png", array), channels=channels)
    assert image.dtype == np.float32
    assert image.flags["C_CONTIGUOUS"]
    assert image.shape == (channels, 5, 7)
    np.testing.assert_array_equal(np.rint(image * scale), np.atleast_3d(array).transpose(2, 0, 1))


@pytest.mark.parametrize("array", [GREY, GREY16, GREY > 128])
def test_masks_keep_their_values(tmp_path: Path, array: np.ndarray) -> None:
    mask = read_mask(write_png(tmp_path / "m.png", array))
    assert np.issubdtype(mask.dtype, np.integer)
    np.testing.assert_array_equal(mask, array)


def test_written_bytes_depend_on_the_array_alone(tmp_path: Path) -> None:
    first, second = write_png(tmp_path / "a.png", RGB), write_png(tmp_path / "sub" / "b.png", RGB)
    assert first.read_bytes() == second.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "sub"]


def test_palette_is_colour_for_an_image_and_indices_for_a_mask(tmp_path: Path) -> None:
    image = Image.fromarray((GREY % 3).astype(np.uint8)).convert("P")
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    path = _saved(tmp_path / "p.png", image)
    np.testing.assert_array_equal(read_mask(path), GREY % 3)
    colours = np.array([[10, 20, 30], [40, 50, 60], [70, 80, 90]])
    np.testing.assert_array_equal(np.rint(read_image(path, channels=3) * 255), colours[GREY % 3].transpose(2, 0, 1))


def test_one_bit_is_zero_and_one(tmp_path: Path) -> None:
    path = _saved(tmp_path / "b.png", Image.fromarray(GREY > 128))
    np.testing.assert_array_equal(read_mask(path), GREY > 128)
    np.testing.assert_array_equal(read_image(path, channels=1)[0], GREY > 128)


def test_opaque_alpha_is_dropped_and_any_other_is_refused(tmp_path: Path) -> None:
    alpha = np.full((5, 7, 1), 255, np.uint8)
    path = _saved(tmp_path / "a.png", Image.fromarray(np.concatenate([RGB, alpha], 2)))
    np.testing.assert_array_equal(np.rint(read_image(path, channels=3) * 255), RGB.transpose(2, 0, 1))
    alpha[2, 3] = 254
    path = _saved(tmp_path / "b.png", Image.fromarray(np.concatenate([RGB, alpha], 2)))
    with pytest.raises(UserError, match=r"E-IMG-ALPHA b\.png.*254"):
        read_image(path, channels=3)


def test_a_transparent_colour_is_alpha(tmp_path: Path) -> None:
    path = _saved(tmp_path / "t.png", Image.fromarray(RGB), transparency=tuple(int(v) for v in RGB[0, 0]))
    with pytest.raises(UserError, match="E-IMG-ALPHA"):
        read_image(path, channels=3)


def test_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees clockwise to stand upright
    path = _saved(tmp_path / "o.png", Image.fromarray(GREY), exif=exif)
    np.testing.assert_array_equal(np.rint(read_image(path, channels=1)[0] * 255), np.rot90(GREY, -1))
    np.testing.assert_array_equal(read_mask(path), np.rot90(GREY, -1))


def test_pages_of_a_tiff(tmp_path: Path) -> None:
    frames = [Image.fromarray(np.full((4, 4), value, np.uint8)) for value in (0, 51, 255)]
    path = _saved(tmp_path / "s.tif", frames[0], save_all=True, append_images=frames[1:])
    assert pages(path) == 3
    assert [float(read_image(path, channels=1, page=p)[0, 0, 0]) for p in range(3)] == pytest.approx([0, 0.2, 1])
    with pytest.raises(UserError, match=r"E-IMG-PAGE s\.tif: page 3 .* has 3"):
        read_image(path, channels=1, page=3)
    assert pages(write_png(tmp_path / "one.png", GREY)) == 1


@pytest.mark.parametrize(("array", "channels", "found"), [(GREY, 3, "grey"), (GREY16, 3, "grey"), (RGB, 1, "RGB")])
def test_colour_is_never_guessed(tmp_path: Path, array: np.ndarray, channels: int, found: str) -> None:
    with pytest.raises(UserError, match=rf"E-IMG-COLOUR x\.png: the image is {found}"):
        read_image(write_png(tmp_path / "x.png", array), channels=channels)


def _png(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "PNG")
    return stream.getvalue()


def _jpeg(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "JPEG")
    return stream.getvalue()


LARGE = RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("empty.png", b"", "E-IMG-EMPTY"),
        ("text.png", b"case_id,group\n", "E-IMG-FORMAT"),
        ("script.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "E-IMG-FORMAT"),
        ("header.png", _png(LARGE)[:20], "E-IMG-(DAMAGED|FORMAT)"),
        ("cut.png", _png(LARGE)[:2000], "E-IMG-DAMAGED"),
        ("cut.jpg", _jpeg(LARGE)[:1200], "E-IMG-DAMAGED"),
        ("flip.png", _png(LARGE)[:60] + b"\0" * 400 + _png(LARGE)[460:], "E-IMG-DAMAGED"),
    ],
)
@pytest.mark.parametrize("read", [lambda p: read_image(p, channels=3), read_mask], ids=["image", "mask"])
def test_damaged_files_are_named(tmp_path: Path, name: str, content: bytes, code: str, read: object) -> None:
    (tmp_path / name).write_bytes(content)
    expected = "E-IMG-MASK|" + code  # a JPEG is no mask, and a colour image neither
    with pytest.raises(UserError, match=rf"({expected}) {re.escape(name)}: .* — ") as caught:
        read(tmp_path / name)  # type: ignore[operator]
    assert str(tmp_path) not in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"E-IMG-FILE gone\.png"):
        read_image(tmp_path / "gone.png", channels=3)
    with pytest.raises(UserError, match="E-IMG-FILE"):
        read_mask(tmp_path)


def test_bombs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_png(tmp_path / "bomb.png", GREY)
    monkeypatch.setattr(raster, "MAX_PIXELS", 34)
    with pytest.raises(SafetyRefusal, match=r"E-IMG-BOMB bomb\.png"):
        read_image(path, channels=1)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # Pillow's own limit, at twice this
    with pytest.raises(SafetyRefusal, match=r"E-IMG-BOMB bomb\.png"):
        read_mask(path)


@pytest.mark.parametrize("image", [Image.new("F", (4, 4)), Image.new("I", (4, 4)), Image.new("CMYK", (4, 4))])
def test_modes_without_an_agreed_meaning(tmp_path: Path, image: Image.Image) -> None:
    path = _saved(tmp_path / "m.tif", image)
    with pytest.raises(UserError, match=r"E-IMG-MODE m\.tif"):
        read_image(path, channels=1)
    with pytest.raises(UserError, match=r"E-IMG-MASK m\.tif"):
        read_mask(path)


def test_masks_are_neither_colour_nor_lossy(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"E-IMG-MASK .* mode RGB"):
        read_mask(write_png(tmp_path / "c.png", RGB))
    with pytest.raises(UserError, match=r"E-IMG-MASK .* lossy"):
        read_mask(_saved(tmp_path / "g.jpg", Image.fromarray(GREY)))


def test_only_arrays_that_a_png_holds_exactly(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"float64 \[2, 2\]"):
        write_png(tmp_path / "f.png", np.zeros((2, 2)))
