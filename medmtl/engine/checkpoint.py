"""Checkpoints that are whole or refused: ``MAGIC (8) | SHA-256 (32) | torch.save payload``; the one before is kept."""

import contextlib
import hashlib
import io
import os
import re
import shutil
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO

import torch

from medmtl.errors import SafetyRefusal
from medmtl.files import atomic_path, disk_errors, sweep_temporaries

MAGIC = b"MEDMTL01"
LAST, PREVIOUS, BEST = "last.ckpt", "previous.ckpt", "best.ckpt"
_HEADER = len(MAGIC) + hashlib.sha256().digest_size
_SCALARS = (type(None), bool, int, float, str, torch.dtype, torch.Size)
_TENSORS = (torch.Tensor, torch.nn.Parameter)


def save(folder: Path, state: dict[str, Any], *, best: bool) -> Path:
    """Write ``last.ckpt``, keep the earlier one as ``previous.ckpt``, and make it ``best.ckpt`` if ``best``.

    At every instant there is a whole file: the earlier one gets a second name first, then the new one replaces
    ``last.ckpt`` in one step, and only then does the second name become ``previous.ckpt``. (Renaming ``last`` to
    ``previous`` first would lose both if ``last`` had been damaged.) A full disk leaves everything as it was.
    """
    assert_plain(state)
    last, kept = folder / LAST, folder / f".{PREVIOUS}.tmp"
    try:
        with atomic_path(last) as temporary:
            _write(temporary, state)
            if last.exists():
                _second_name(last, kept)
        with disk_errors(folder):
            if kept.exists():
                kept.replace(folder / PREVIOUS)
            if best:
                _second_name(last, kept)
                kept.replace(folder / BEST)
    finally:
        kept.unlink(missing_ok=True)
    return last


def load(path: Path) -> dict[str, Any]:
    """The state in ``path``: magic, checksum, then tensors and plain Python only; anything else is refused."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise _refusal("E-CKPT-READ", f"cannot be read: {error.strerror}", "check the path", path) from error
    if content[: len(MAGIC)] != MAGIC:
        raise _refusal("E-CKPT-MAGIC", "is not a checkpoint of medmtl", "give a file that `medmtl train` wrote", path)
    payload = memoryview(content)[_HEADER:]
    if hashlib.sha256(payload).digest() != content[len(MAGIC) : _HEADER]:
        raise _refusal(
            "E-CKPT-CHECKSUM",
            f"checksum mismatch: damaged or cut short ({len(content)} bytes)",
            f"use {PREVIOUS}, or restore the file from a backup",
            path,
        )
    try:
        state = torch.load(io.BytesIO(payload), weights_only=True, map_location="cpu")
    except Exception as error:  # the checksum fits, so whoever wrote it meant it: hostile, or of another version
        blocked = re.search(r"GLOBAL (\S+)", str(error))
        what = f"cannot be decoded ({type(error).__name__})"
        if blocked:
            what = f"holds the global {blocked[1]}, which could run code"
        raise _refusal("E-CKPT-PICKLE", what, "do not use this file; ask where it came from", path) from error
    if not isinstance(state, dict):
        raise _refusal(
            "E-CKPT-CONTENT",
            f"a mapping was expected, found {type(state).__name__}",
            "give a file that `medmtl train` wrote",
            path,
        )
    return state


def load_latest(folder: Path) -> tuple[dict[str, Any], Path, list[str]] | None:
    """``(state, its file, warnings)`` from ``last.ckpt``, or from ``previous.ckpt`` when that is damaged or missing.

    ``None`` when there is neither. Raises the first refusal when files are there and none can be used. Leftovers of
    a killed save are swept, so only the process that owns the folder may call it while nothing is being saved.
    """
    sweep_temporaries(folder)
    refusals: list[SafetyRefusal] = []
    for path in (folder / LAST, folder / PREVIOUS):
        if not path.exists():
            continue
        try:
            state = load(path)
        except SafetyRefusal as refusal:
            refusals.append(refusal)
            continue
        warnings = [f"{refusal}; continuing from {path.name}, the checkpoint before it" for refusal in refusals]
        if path.name == PREVIOUS and not warnings:
            warnings = [f"{LAST} is missing; continuing from {path.name}, the checkpoint before it"]
        return state, path, warnings
    if refusals:
        raise refusals[0]
    return None


def assert_plain(state: Any, where: str = "state") -> None:
    """Raise a TypeError that names the key path unless ``state`` is plain Python and tensors all the way down.

    Paths, enums, dates, NumPy scalars and tensor subclasses would be written and then refused at loading.
    """
    kind = type(state)  # exact types: np.float64 is a float, a str enum is a str
    if kind in (dict, OrderedDict):
        for key, value in state.items():
            assert_plain(key, f"the key {key!r} of {where}")
            assert_plain(value, f"{where}[{key!r}]")
    elif kind in (list, tuple):
        for index, value in enumerate(state):
            assert_plain(value, f"{where}[{index}]")
    elif kind not in _SCALARS and kind not in _TENSORS:
        raise TypeError(
            f"{where} is a {kind.__module__}.{kind.__qualname__}, which a checkpoint cannot hold; "
            "store plain Python or a tensor (str(path), float(x), enum.value)"
        )


class _Hashing:
    """A stream that hashes what it writes and remembers why a write failed (torch calls a full disk its own bug)."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream, self.sha = stream, hashlib.sha256()
        self.failure: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            self.stream.write(data)
        except OSError as error:
            self.failure = error
            raise
        self.sha.update(data)
        return len(data)

    def flush(self) -> None:
        self.stream.flush()


def _write(path: Path, state: dict[str, Any]) -> None:
    with path.open("r+b") as stream:
        stream.write(MAGIC + bytes(_HEADER - len(MAGIC)))
        hashing = _Hashing(stream)
        try:
            torch.save(state, hashing)  # type: ignore[arg-type]  # it needs write and flush only
        except Exception:
            if hashing.failure is not None:
                raise hashing.failure from None
            raise
        stream.seek(len(MAGIC))
        stream.write(hashing.sha.digest())


def _second_name(path: Path, name: Path) -> None:
    """Make ``name`` the same file as ``path``; a copy where the file system has no hard links."""
    name.unlink(missing_ok=True)
    try:
        os.link(path, name)
    except OSError:
        with contextlib.ExitStack() as undo:
            undo.callback(name.unlink, missing_ok=True)
            shutil.copyfile(path, name)
            with name.open("rb") as stream:
                os.fsync(stream.fileno())
            undo.pop_all()


def _refusal(code: str, what: str, remedy: str, path: Path) -> SafetyRefusal:
    return SafetyRefusal(code, what, remedy, where=str(path))
