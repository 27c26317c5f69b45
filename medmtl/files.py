"""Files that are whole or absent: atomic writes, append-only ledgers, hashes, and paths that stay inside their root."""

import contextlib
import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from medmtl.errors import EnvironmentFailure, SafetyRefusal

_DENIED = ("permission is denied", "choose a folder that you may write to, or have its permissions changed")
_DISK = {  # what is wrong, and what helps
    errno.ENOSPC: ("the disk is full", "free space or choose another folder"),
    errno.EDQUOT: ("the disk quota is used up", "remove files of your own there, or choose another folder"),
    errno.EFBIG: ("the file is too big", "raise the limit (ulimit -f), or choose a disk that holds larger files"),
    errno.EROFS: ("the file system is read-only", "choose a folder elsewhere, or mount this one for writing"),
    errno.EACCES: _DENIED,
    errno.EPERM: _DENIED,
}


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn the system's refusals to write ``path`` into an :class:`EnvironmentFailure` that names the place."""
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK:
            raise
        what, remedy = _DISK[error.errno]
        if error.errno == errno.ENOSPC:  # of the others, the space that is free tells nothing
            folder = next((p for p in (path, *path.parents) if p.exists()), Path("/"))
            what = f"{what} ({shutil.disk_usage(folder).free / 2**20:.0f} MiB free)"
        raise EnvironmentFailure(
            "E-DISK", f"cannot write: {what}", f"{remedy}; then run the same command again", where=str(path)
        ) from error


@contextlib.contextmanager
def atomic_path(path: Path, *, sync: bool = True) -> Iterator[Path]:
    """A temporary path in the same folder; when the block ends well it is synced and renamed to ``path``.

    A crash, a full disk or a kill leaves the previous ``path`` as it was. The suffix of ``path`` is kept, because
    writers choose their format by it. Without ``sync`` that holds for everything but a power cut, which can leave an
    empty file or none: for what a ledger names with its size, so that it is made again.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{_short(path.name)}.", suffix=f".tmp{path.suffix}")
        os.close(handle)
    temporary = Path(name)
    try:
        with disk_errors(path):
            yield temporary
            if sync:
                with temporary.open("rb") as stream:
                    os.fsync(stream.fileno())
            mask = os.umask(0)
            os.umask(mask)
            temporary.chmod(0o666 & ~mask)
            temporary.replace(path)
            if sync:
                _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomic(path: Path, content: bytes | str, *, sync: bool = True) -> Path:
    """Write ``content`` (text as UTF-8) so that ``path`` is either the old file or the whole new one."""
    with atomic_path(path, sync=sync) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def append_line(path: Path, line: str) -> None:
    """Append one line and sync it: after a kill, every line but perhaps the last is whole.

    A last line that was cut short is closed first, so that it cannot swallow the new one. What a full disk left of the
    new one is taken back: when there is room again, it would stand in the middle.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+", buffering=0) as stream:
            end, cut = stream.seek(0, os.SEEK_END), False
            if end:
                stream.seek(-1, os.SEEK_END)
                cut = stream.read(1) != b"\n"
            left = memoryview((b"\n" if cut else b"") + line.rstrip("\n").encode() + b"\n")
            try:
                while left:
                    left = left[stream.write(left) :]
                os.fsync(stream.fileno())
            except OSError:
                with contextlib.suppress(OSError):
                    stream.truncate(end)
                raise


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def inside(root: Path, relative: str) -> Path:
    """``root / relative`` with links resolved, refused when it is absolute, a URL, or leaves ``root``."""
    resolved_root = root.resolve()
    if "\0" in relative or "://" in relative or Path(relative).is_absolute() or relative[1:3] in (":\\", ":/"):
        raise SafetyRefusal(
            "E-SEC-PATH",
            f"{relative!r} is not a path relative to the root",
            "write paths relative to that root",
            where=root.name,
        )
    try:
        path = (resolved_root / relative).resolve()
        path.is_file()
    except (OSError, RuntimeError) as error:  # a name that is too long, links that run in a circle
        raise SafetyRefusal(
            "E-SEC-PATH",
            f"{relative[:80]!r} cannot be followed ({type(error).__name__})",
            "shorten the name, or replace the link by the file",
            where=root.name,
        ) from error
    if not path.is_relative_to(resolved_root):
        raise SafetyRefusal(
            "E-SEC-PATH",
            f"{relative!r} leaves the root",
            "move the file under that root",
            where=root.name,
        )
    return path


def sweep_temporaries(folder: Path) -> int:
    """Remove what a killed :func:`atomic_path` left in ``folder``; returns how many."""
    leftovers = list(folder.glob(".*.tmp*")) if folder.is_dir() else []
    for leftover in leftovers:
        leftover.unlink(missing_ok=True)
    return len(leftovers)


def _short(name: str) -> str:
    """The beginning of a file name, at most 60 bytes: a name may have 255 with the random part."""
    return os.fsencode(name)[:60].decode(errors="ignore")


def _sync_folder(folder: Path) -> None:
    """Make a rename durable; file systems that cannot sync a folder are left alone."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
