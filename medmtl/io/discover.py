"""A folder -> the images in it: every PNG, JPEG and TIFF, each page of a TIFF for itself, and what was left aside.

Nothing outside the folder is ever opened, nothing that is not a regular file is opened at all (a FIFO would wait for
ever), and whatever is not an image is counted by kind, so that a folder of DICOM files is not taken for an empty one.
"""

import os
import stat
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medmtl.errors import UserError
from medmtl.io import raster

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # classic and BigTIFF, both byte orders


@dataclass(frozen=True, order=True)
class Found:
    """One image: a file below the root, or one page of it (counted from 0)."""

    path: str  # relative to the root, with "/"
    page: int = 0
    pages: int = 1

    @property
    def id(self) -> str:
        """The path, and ``#page`` where the file has several. Unique, since no image's suffix holds a ``#``."""
        return f"{self.path}#{self.page}" if self.pages > 1 else self.path


@dataclass(frozen=True)
class Listing:
    """The images of a folder in a fixed order (of code points), and how many files of which kind are none."""

    images: tuple[Found, ...]
    ignored: Mapping[
        str, int
    ]  # ".dcm", "no suffix", "hidden", "link" (out of the folder, broken, to a folder), "special"


def discover(root: Path, *, exclude: Sequence[Path] = ()) -> Listing:
    """The images below ``root``, without the folders ``exclude``.

    Files are chosen by suffix, whatever they hold: one that turns out not to be an image fails when it is read. Names
    that begin with a dot are hidden (``._scan.png`` of macOS is no image). A link counts if it leads to a file inside
    ``root``; links to folders are not followed. A folder that cannot be listed appears as an image ``folder/``, so that
    it fails as one instead of being missing. Of an animated PNG or a JPEG of several pictures the first one counts.
    """
    if not root.is_dir():
        raise UserError("E-PRE-SOURCE", "no such folder", "give the folder that holds the images", where=str(root))
    top, closed = root.resolve(), tuple(path.resolve() for path in exclude)
    ignored: Counter[str] = Counter()
    images: list[Found] = []
    folders = [top]
    while folders:
        folder = folders.pop()
        for entry in _entries(folder):
            if entry is None:
                images.append(Found(f"{folder.relative_to(top).as_posix()}/"))
            elif Path(entry.path) in closed:
                continue
            elif entry.is_dir(follow_symlinks=False) and not entry.name.startswith("."):
                folders.append(Path(entry.path))
            elif (kind := _not_image(entry, top, closed)) is not None:
                ignored[kind] += 1
            else:
                path = Path(entry.path)
                count = _pages(path)
                images += [Found(path.relative_to(top).as_posix(), page, count) for page in range(count)]
    return Listing(tuple(sorted(images)), dict(sorted(ignored.items())))


def _entries(folder: Path) -> Iterator["os.DirEntry[str] | None"]:
    """What a folder holds; None where it cannot be listed (to the end)."""
    try:
        with os.scandir(folder) as entries:
            yield from entries
    except OSError:
        yield None


def _not_image(entry: "os.DirEntry[str]", top: Path, closed: Sequence[Path]) -> str | None:
    """Why a file is left aside, or None for an image."""
    if entry.name.startswith("."):
        return "hidden"
    if entry.is_symlink():
        if not _leads_inside(Path(entry.path), top, closed):
            return "link"
    elif not _regular(entry):
        return "special"
    suffix = Path(entry.name).suffix.lower()
    return None if suffix in SUFFIXES else suffix or "no suffix"


def _leads_inside(link: Path, top: Path, closed: Sequence[Path]) -> bool:
    try:
        target = link.resolve(strict=True)
    except (OSError, RuntimeError):  # broken, or a loop
        return False
    return target.is_file() and target.is_relative_to(top) and not any(target.is_relative_to(path) for path in closed)


def _regular(entry: "os.DirEntry[str]") -> bool:
    try:
        return stat.S_ISREG(entry.stat(follow_symlinks=False).st_mode)
    except OSError:  # vanished meanwhile: reading it will say so
        return True


def _pages(path: Path) -> int:
    """Pages of a TIFF, whatever its suffix; 1 for every other file and for one that cannot be read."""
    try:
        with path.open("rb") as stream:
            head = stream.read(4)
        return raster.pages(path) if head in _TIFF else 1
    except (OSError, UserError):  # reading the image will say why
        return 1
