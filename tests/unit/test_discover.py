"""Laws of finding images: every image once, in one order, nothing outside the folder, nothing that would block."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medmtl.errors import UserError
from medmtl.io.discover import Found, discover
from medmtl.io.raster import write_png

GREY = np.zeros((4, 5), dtype=np.uint8)


def _tiff(path: Path, pages: int) -> None:
    images = [Image.fromarray(GREY + i) for i in range(pages)]
    images[0].save(path, format="TIFF", save_all=True, append_images=images[1:])


def test_images_by_suffix_in_any_case_sorted_and_the_rest_counted(tmp_path: Path) -> None:
    for name in ("b/z.PNG", "a.jpeg", "b/c/1.Tif", "b/10.jpg", "b/9.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"whatever it holds")
    for name in ("x.dcm", "b/y.DCM", "README", ".DS_Store", "b/._z.png"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / ".ipynb_checkpoints").mkdir()
    (tmp_path / ".ipynb_checkpoints" / "a.png").write_bytes(b"")
    listing = discover(tmp_path)
    assert [image.id for image in listing.images] == ["a.jpeg", "b/10.jpg", "b/9.jpg", "b/c/1.Tif", "b/z.PNG"]
    assert listing.ignored == {".dcm": 2, "hidden": 3, "no suffix": 1}


def test_pages_of_a_tiff_are_images_whatever_its_suffix(tmp_path: Path) -> None:
    _tiff(tmp_path / "one.tif", 1)
    _tiff(tmp_path / "three.tiff", 3)
    _tiff(tmp_path / "two.png", 2)
    (tmp_path / "cut.tif").write_bytes((tmp_path / "three.tiff").read_bytes()[:20])
    assert [image.id for image in discover(tmp_path).images] == [
        "cut.tif",
        "one.tif",
        *(f"three.tiff#{page}" for page in range(3)),
        *(f"two.png#{page}" for page in range(2)),
    ]
    assert discover(tmp_path).images[3] == Found("three.tiff", 1, 3)


def test_links_count_only_inside_and_nothing_special_is_opened(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    write_png(root / "sub" / "a.png", GREY)
    write_png(outside / "secret.png", GREY)
    (root / "inner.png").symlink_to(root / "sub" / "a.png")
    (root / "out.png").symlink_to(outside / "secret.png")
    (root / "broken.png").symlink_to(root / "none.png")
    (root / "loop.png").symlink_to(root / "loop.png")
    (root / "folder").symlink_to(outside)
    (root / "again").symlink_to(root)
    os.mkfifo(root / "pipe.png")
    (tmp_path / "way").symlink_to(root)
    listing = discover(tmp_path / "way")
    assert [image.path for image in listing.images] == ["inner.png", "sub/a.png"]
    assert listing.ignored == {"link": 5, "special": 1}


def test_excluded_folder_is_not_entered_not_even_through_a_link(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", GREY)
    write_png(tmp_path / "out" / "mask.png", GREY)
    (tmp_path / "l.png").symlink_to(tmp_path / "out" / "mask.png")
    listing = discover(tmp_path, exclude=(tmp_path / "out",))
    assert [image.path for image in listing.images] == ["a.png"]
    assert listing.ignored == {"link": 1}


def test_a_folder_that_cannot_be_listed_appears_as_an_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "locked").mkdir()
    write_png(tmp_path / "a.png", GREY)
    scan = os.scandir

    def refuse(path: Path) -> object:
        if Path(path).name == "locked":
            raise PermissionError(13, "denied")
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert [image.path for image in discover(tmp_path).images] == ["a.png", "locked/"]


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="E-PRE-SOURCE"):
        discover(tmp_path / "none")
    assert discover(tmp_path).images == ()
