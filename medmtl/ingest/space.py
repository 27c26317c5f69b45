"""Whether the disk holds what a job is about to write: asked before the first image, not found out at the last."""

import math
import shutil
from collections.abc import Sequence
from pathlib import Path

from medmtl.errors import EnvironmentFailure
from medmtl.ingest.cases import PlannedCase

_PACKED = 0.25  # of decoded bytes are left by gzip, at the least; of a noisy CT a half: a job that fits is not refused
_MIB = 2**20


def needed(cases: Sequence[PlannedCase], *, uncompressed: bool = False) -> int:
    """About how many bytes the images of ``cases`` will take: of DICOM by its headers, of other files as they are."""
    volumes = [case.stack for case in cases if case.stack is not None]
    values = sum(math.prod(stack.shape) * pixels.itemsize for stack in volumes if (pixels := stack.first.pixels))
    files = {file.path: file.size for case in cases if case.stack is None for file in case.files}  # of pages: once
    return int((1 if uncompressed else _PACKED) * values) + sum(files.values())


def check_space(out: Path, cases: Sequence[PlannedCase], *, uncompressed: bool = False) -> None:
    """Refuse (``E-DISK``) to begin what the disk of ``out`` has no room for."""
    need, free = needed(cases, uncompressed=uncompressed), shutil.disk_usage(out).free
    if need > free:
        raise EnvironmentFailure(
            "E-DISK",
            f"{len(cases)} images need about {need / _MIB:,.1f} MiB, {free / _MIB:,.1f} MiB are free",
            "free space or choose another folder, then run the same command again",
            where="OUT",
        )
