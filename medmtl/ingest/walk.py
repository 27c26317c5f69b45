"""A tree -> its files, and what is there beside files. Nothing is opened, nothing outside the tree is looked at."""

import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, order=True)
class Found:
    """A regular file of the tree, and what changes when it is written to."""

    path: str  # relative, with "/"; bytes that are no UTF-8 as lone surrogates (PEP 383)
    size: int
    mtime_ns: int
    inode: int


@dataclass(frozen=True, order=True)
class Aside:
    """Something that is refused or ignored without being opened."""

    path: str
    kind: str  # "folder", "link", "special", "hidden"
    code: str
    what: str


@dataclass(frozen=True)
class Walked:
    """Everything in a tree, each thing once, sorted by its path's bytes."""

    files: tuple[Found, ...]
    asides: tuple[Aside, ...]


def walk(root: Path) -> Walked:
    """Everything below ``root``.

    Links to folders are not followed, so a tree has no loops. A link to a file counts as that file where the file
    itself is not part of the walk, because it lies in a hidden folder (``.git/annex``); files of hidden folders are
    ignored otherwise. A link that leads out of ``root`` is refused, FIFOs, sockets and devices are ignored, a folder
    that cannot be listed is refused. Depth is bounded by the length that the system allows a path.
    """
    top = root.resolve()
    files: list[Found] = []
    asides: list[Aside] = []
    folders = [""]
    seen = {_identity(top)}
    while folders:
        folder = folders.pop()
        for item in _entries(top, folder):
            if isinstance(item, Aside):
                asides.append(item)
                continue
            path = f"{folder}/{item.name}" if folder else item.name
            try:
                if item.is_dir(follow_symlinks=False):
                    identity = _identity(Path(item.path))
                    if identity in seen:  # mounted below itself
                        asides.append(Aside(path, "folder", "I-FILE-LINK", "the folder is in the tree already"))
                    else:
                        seen.add(identity)
                        folders.append(path)
                    continue
                found = _link(top, path, item) if item.is_symlink() else _file(path, item.stat(follow_symlinks=False))
            except OSError as error:
                found = Aside(path, "file", "E-FILE-OPEN", _reason(error))
            if isinstance(found, Found) and _hidden(folder):
                found = Aside(path, "hidden", "I-FILE-HIDDEN", "in a hidden folder")
            if isinstance(found, Found):
                files.append(found)
            else:
                asides.append(found)
    return Walked(tuple(sorted(files, key=_bytes)), tuple(sorted(asides, key=_bytes)))


def _entries(top: Path, folder: str) -> "Iterator[os.DirEntry[str] | Aside]":
    """What a folder holds, or itself if it cannot be listed."""
    try:
        with os.scandir(top / folder) as entries:
            yield from entries
    except OSError as error:
        yield Aside(f"{folder}/", "folder", "E-FILE-OPEN", f"the folder cannot be listed: {_reason(error)}")


def _file(path: str, info: os.stat_result) -> Found | Aside:
    if stat.S_ISREG(info.st_mode):
        return Found(path, info.st_size, info.st_mtime_ns, info.st_ino)
    return Aside(path, "special", "I-FILE-SPECIAL", "not a regular file (FIFO, socket or device)")


def _link(top: Path, path: str, item: "os.DirEntry[str]") -> Found | Aside:
    try:
        target = Path(item.path).resolve(strict=False)
        if not target.is_relative_to(top):
            return Aside(path, "link", "E-SEC-PATH", "the link leads out of the source folder")
        target = target.resolve(strict=True)
    except (OSError, RuntimeError):
        return Aside(path, "link", "E-FILE-LINK", "the link leads nowhere, or in a circle")
    inner = os.fspath(target.relative_to(top))
    if target.is_dir() or not _hidden(os.path.dirname(inner)):  # noqa: PTH120 # a relative string, perhaps with surrogates
        return Aside(path, "link", "I-FILE-LINK", "what the link leads to is in the tree itself")
    return _file(path, target.stat())


def _hidden(folder: str) -> bool:
    return any(part.startswith(".") for part in folder.split("/") if part not in ("", ".", ".."))


def _identity(folder: Path) -> tuple[int, int]:
    info = folder.stat()
    return info.st_dev, info.st_ino


def _bytes(item: Found | Aside) -> bytes:
    return os.fsencode(item.path)


def _reason(error: OSError) -> str:
    """The system's words without the path."""
    if error.errno == errno.ENAMETOOLONG:
        return "the path is longer than the system allows"
    return os.strerror(error.errno) if error.errno else type(error).__name__
