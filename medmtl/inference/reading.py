"""One input, read and preprocessed for the network as in training: the same functions, file for file."""

import errno
import hashlib
import math
import os
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medmtl.data.grid import Grid
from medmtl.data.preprocess import Preprocess
from medmtl.errors import EnvironmentFailure, UserError
from medmtl.files import inside, sha256
from medmtl.fingerprint import Facts, Fingerprint, Verdict, compare, look
from medmtl.inference.isolated import load_stack
from medmtl.inference.listing import Input
from medmtl.ingest.rules import dicom_value
from medmtl.ingest.walk import Found
from medmtl.io.nifti import files_of, read_nifti
from medmtl.io.raster import read_image
from medmtl.io.volume import Note, Volume
from medmtl.io.voxels import finite, not_constant, upright_picture

Files = tuple[tuple[Path, Found], ...]  # of an input, each with what changes when it is written to
_NAME_ERRORS = (errno.ENAMETOOLONG, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.EINVAL, errno.EILSEQ)
_FEW = 64  # numbers that Python looks at faster than torch is asked


@dataclass(frozen=True)
class Loaded:
    """An input ready for the network; one that is done already has neither ``image`` nor ``error``."""

    item: Input
    sha256: str = ""  # of its files' content
    image: Tensor | None = None  # [C, *S], preprocessed
    shown: npt.NDArray[np.float32] | Volume | None = None  # as it was decoded: [C, H, W] in [0, 1], or the volume
    native: tuple[int, ...] = ()  # [*S] of the tensor before windowing
    grid: Grid | None = None  # of a volume
    blank: bool = False  # every pixel has the same value
    verdict: Verdict | None = None  # on how it compares with the training images
    facts: Facts | None = None  # for a verdict that needs the encoder's features, too (fingerprints of format 1)
    notes: tuple[Note, ...] = ()
    error: UserError | None = None
    seconds: float = 0.0


@dataclass
class Reader:
    """Reads the inputs of a folder for one bundle. Its methods run in threads, or in a process that has a copy."""

    source: Path
    preprocess: Preprocess
    max_bytes: int
    fill_nan: bool = False
    known: Fingerprint | None = None  # of the training images, which each image is compared with
    _digests: dict[str, tuple[Found, str]] = field(default_factory=dict)

    def files(self, item: Input) -> Files:
        """The input's files as they are now. Followed once, so that digest and pixels are those of one file."""
        files = tuple((path, _found(path)) for path in (inside(self.source, found.path) for found in item.files))
        return files if item.kind != "nifti" else tuple((path, _found(path)) for path in files_of(files[0][0]))

    def digest(self, files: Files) -> str:
        """SHA-256 of an input's files, each read once for all the inputs that it is part of."""
        digests = []
        for path, now in files:
            known = self._digests.get(str(path))
            if known is None or known[0] != now:
                known = self._digests[str(path)] = (now, sha256(path))
            digests.append(known[1])
        return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()

    def loaded(self, item: Input, done: Callable[[str], bool] = lambda content: False) -> Loaded:
        """The input as the network sees it, or what is wrong with it; neither where its content is ``done``."""
        began = time.perf_counter()
        content = ""
        try:
            files = self.files(item)
            content = self.digest(files)
            return Loaded(item, content) if done(content) else self.read(item, files, content)
        except (UserError, OSError, MemoryError) as error:
            return Loaded(item, content, error=explained(error), seconds=time.perf_counter() - began)

    def read(self, item: Input, files: Files = (), content: str = "") -> Loaded:
        """The input as the network sees it; raises UserError, OSError or MemoryError, whatever is wrong with it.

        ``files`` and ``content`` are what :meth:`files` and :meth:`digest` said of it, if they were asked: what changed
        since then is refused.
        """
        began = time.perf_counter()
        files = files or self.files(item)
        volume, grid = None, None
        if item.kind == "raster":
            shown: npt.NDArray[np.float32] | Volume = read_image(files[0][0], channels=self._channels(), page=item.page)
            pixels = torch.as_tensor(shown)
        else:
            volume = self._volume(item)
            if self.preprocess.volume is None:
                shown = picture(volume, channels=self.preprocess.channels)
                pixels = torch.as_tensor(shown)
            else:
                shown = volume
                pixels, grid = self.preprocess.volume.image(volume)
        if any(_found(path) != before for path, before in files):
            raise UserError(
                "E-PRE-CHANGED", "the file changed while it was read", "wait until it is copied and run again"
            )
        seen = self.preprocess.seen(pixels)
        image = self.preprocess.normalised(seen)
        if not is_finite(image):
            raise UserError("E-IMG-FINITE", "the preprocessed image holds NaN or infinity", "check its intensities")
        verdict, facts = None, None
        if self.known is not None:
            facts = self._look(item, pixels, seen, volume, grid)
            if "features" not in self.known.gauges:
                verdict, facts = compare(self.known, facts), None
        low, high = torch.aminmax(pixels)
        return Loaded(
            item,
            content,
            image=image,
            shown=shown,
            native=tuple(pixels.shape[1:]),
            grid=grid,
            blank=bool(low == high),
            verdict=verdict,
            facts=facts,
            notes=volume.notes if volume is not None else (),
            seconds=time.perf_counter() - began,
        )

    def _channels(self) -> int:
        if self.preprocess.channels not in (1, 3):
            raise UserError(
                "E-PRE-CHANNELS",
                f"the bundle takes {self.preprocess.channels} channels, image files hold 1 or 3",
                "use a bundle that was trained on image files",
            )
        return self.preprocess.channels

    def _volume(self, item: Input) -> Volume:
        if item.stack is None:
            return read_nifti(
                inside(self.source, item.files[0].path),
                max_bytes=self.max_bytes,
                nan="fill" if self.fill_nan else "refuse",
            )
        volume = finite(load_stack(item.stack), fill=self.fill_nan)
        return volume if volume.affine is None else not_constant(volume)  # a blank picture is a warning

    def _look(self, item: Input, pixels: Tensor, seen: Tensor, volume: Volume | None, grid: Grid | None) -> Facts:
        header = item.stack.first if item.stack is not None else None
        labels = {}
        if header is not None:
            labels = {"modality": header.modality, "body_part": dicom_value(header, "BodyPartExamined")}
        return look(pixels, seen=seen, volume=volume, grid=grid, preprocess=self.preprocess, labels=labels)


def picture(volume: Volume, *, channels: int) -> npt.NDArray[np.float32]:
    """A DICOM picture without a place as float32 [C, H, W] in [0, 1], upright: what reading the PNG would give that
    ingesting writes for it. Refuses values that no such PNG holds (``E-PRE-VALUES``), and the wrong colour."""
    array = volume.array
    assert volume.affine is None, "a picture has no place"
    assert array.shape[2] == 1, array.shape
    if (3 if volume.colour else 1) != channels:
        found, wanted = ("RGB", "grey") if volume.colour else ("grey", "RGB")
        raise UserError("E-IMG-COLOUR", f"the image is {found}, {wanted} was expected", "use another bundle")
    upright = upright_picture(volume)
    if upright is None:
        low, high = float(array.min()), float(array.max())  # type: ignore[arg-type]
        raise UserError(
            "E-PRE-VALUES",
            f"values from {low:g} to {high:g} ({array.dtype}) are none of a picture",
            "use a bundle that was trained on such images",
        )
    unit = upright.astype(np.float32) / np.float32(np.iinfo(upright.dtype).max)
    return np.ascontiguousarray(unit.transpose(2, 0, 1) if volume.colour else unit[None])


def is_finite(tensor: Tensor) -> bool:
    """Whether no element is NaN or infinite: in one pass, without a map of which ones."""
    if tensor.numel() <= _FEW:
        return all(map(math.isfinite, tensor.flatten().tolist()))
    low, high = torch.aminmax(tensor)  # NaN if any element is
    return math.isfinite(low) and math.isfinite(high)


def _found(path: Path) -> Found:
    """What changes when a file is written to; refuses what is not a regular file (a FIFO would be waited for)."""
    info = path.stat()
    if not stat.S_ISREG(info.st_mode):
        what = "the folder cannot be listed" if stat.S_ISDIR(info.st_mode) else "not a regular file"
        raise UserError("E-IMG-FILE", what, "check that it is a file or folder that you may read")
    return Found("", info.st_size, info.st_mtime_ns, info.st_ino)


def explained(error: Exception, out: Path | None = None) -> UserError:
    """What is wrong with one input, as an error with a remedy; raises what is wrong with the machine."""
    match error:
        case EnvironmentFailure():
            raise error
        case UserError():
            return error
        case MemoryError():
            return UserError("E-PRE-MEMORY", "the memory does not suffice for the image", "cut it into tiles")
        case OSError() if out is None:
            reason = f"the file cannot be read ({os.strerror(error.errno) if error.errno else type(error).__name__})"
            return UserError("E-IMG-FILE", reason, "restore it, or its permissions, and run again")
        case OSError() if error.errno in _NAME_ERRORS:
            return UserError(
                "E-PRE-NAME", f"no output file can have this name ({os.strerror(error.errno)})", "rename the image"
            )
    raise EnvironmentFailure(
        "E-DISK", f"cannot write ({error})", "see to the disk, then run again", where=str(out)
    ) from error
