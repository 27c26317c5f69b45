"""One case: its pixels are read, checked, and written as a file of the study. Runs in a worker process."""

import json
import os
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from medmtl.errors import EnvironmentFailure, UserError
from medmtl.files import write_atomic
from medmtl.ingest.cases import PlannedCase
from medmtl.ingest.ledger import Entry, output_of
from medmtl.ingest.masks import mask_name, raster_masks, volume_masks
from medmtl.ingest.rasters import check_depth, clean, pixels, turned
from medmtl.ingest.sidecar import sidecar
from medmtl.ingest.tasks import Made, Task
from medmtl.ingest.thumbnail import thumbnail
from medmtl.io.dicom.load import load
from medmtl.io.nifti import read_nifti, write_nifti
from medmtl.io.raster import write_png
from medmtl.io.reasons import refusal
from medmtl.io.volume import Volume
from medmtl.io.voxels import finite, not_constant, upright_picture

_DECIMALS = 6


def make_case(task: Task) -> Made:
    """Make one case. Whatever is wrong with it is its entry; a full disk is the job's business."""
    began = time.perf_counter()
    case = task.case
    try:
        entry = _make(task)
    except EnvironmentFailure as error:
        return Made(None, error)
    except UserError as error:
        entry = Entry(case.id, case.signature, "failed", error.code, error.what, error.remedy)
    except MemoryError:
        entry = _failed(case, refusal("E-ING-MEMORY", "the memory does not suffice for this image"))
    except OSError as error:
        what = os.strerror(error.errno) if error.errno else type(error).__name__
        entry = _failed(case, refusal("E-FILE-OPEN", f"the file cannot be read ({what})"))
    return Made(replace(entry, seconds=round(time.perf_counter() - began, 3)))


def _check_unchanged(task: Task) -> None:
    """Refuse files that are not what was planned with. DICOM files are checked as they are read."""
    for found in task.case.files:
        info = (task.source / found.path).stat()
        if (info.st_size, info.st_mtime_ns) != (found.size, found.mtime_ns):
            raise refusal("E-FILE-CHANGED", "the file changed since the folder was scanned")


def _failed(case: PlannedCase, error: UserError) -> Entry:
    return Entry(case.id, case.signature, "failed", error.code, error.what, error.remedy)


def _make(task: Task) -> Entry:
    case = task.case
    if case.kind == "raster":
        return _make_raster(task)
    if case.stack is not None:
        volume = not_constant(finite(load(case.stack), fill=task.fill_nan))
        header, split = case.stack.first, dict(case.stack.split)
    else:
        path = task.source / case.files[0].path
        nan: Literal["fill", "refuse"] = "fill" if task.fill_nan else "refuse"
        volume = read_nifti(path, max_bytes=task.max_bytes, nan=nan, fourth=task.fourth_axis)
        header, split = None, {}
    masks, said = volume_masks(task, volume)  # before anything is written: a wrong one refuses the case
    if case.stack is None or case.drawn:
        _check_unchanged(task)
    flat = upright_picture(volume) if volume.affine is None and case.stack is not None else None
    suffix = ".nii" if task.uncompressed else ".nii.gz"
    name = f"images/{case.id}{suffix if flat is None else '.png'}"
    paths = [write_nifti(task.out / name, volume) if flat is None else write_png(task.out / name, flat)]
    paths += [write_nifti(task.out / mask_name(case, target, suffix), mask) for target, mask in masks.items()]
    notes = tuple((note.code, note.what) for note in (*volume.notes, *said))
    about = sidecar(kind=case.kind, volume=volume, header=header, split=split, notes=notes)
    paths += _beside(task, about, thumbnail(volume))
    return _done(task, name, paths, notes, _facts(volume, task.fourth_axis if case.stack is None else "time"))


def _make_raster(task: Task) -> Entry:
    """A picture: the file's own bytes where nothing in them identifies, else its pixels as PNG."""
    case = task.case
    path = task.source / case.files[0].path
    array = pixels(path, case.page or 0)
    if array.min() == array.max():
        raise refusal("E-ING-EMPTY", f"every pixel is {array.flat[0]}")
    masks, said = raster_masks(task, array)
    content = path.read_bytes()
    _check_unchanged(task)
    notes = [(note.code, note.what) for note in said]
    copied = None if case.page is not None else _copy(path, content, keep=task.keep_names, notes=notes)
    if copied is None:
        check_depth(path)
        name = f"images/{case.id}.png"
        paths = [write_png(task.out / name, array)]
        page = "" if case.page is None else f", page {case.page + 1}"
        notes.append(("R-RAS-PNG", f"written anew as PNG, without metadata{page}"))
    else:
        name = f"images/{case.id}{_suffix(content)}"
        paths = [write_atomic(task.out / name, copied)]
        if copied != content and not np.array_equal(pixels(paths[0]), array):
            paths[0].unlink()
            raise refusal("E-IMG-DAMAGED", "without its metadata the picture is another one")
    paths += [write_png(task.out / mask_name(case, target, ".png"), mask) for target, mask in masks.items()]
    about = sidecar(kind="raster", volume=None, header=None, split={}, notes=tuple(notes))
    paths += _beside(task, about, thumbnail(array))
    facts = {"shape": list(array.shape), "dtype": str(array.dtype), "colour": array.ndim == 3}
    return _done(task, name, paths, tuple(notes), facts)


def _copy(path: Path, content: bytes, *, keep: bool, notes: list[tuple[str, str]]) -> bytes | None:
    """The bytes to be written, or None where the picture must be written anew."""
    if keep:
        return content
    cleaned = None if turned(path) else clean(content)
    if cleaned is not None and cleaned.removed:
        notes.append(("R-RAS-METADATA", f"metadata were removed: {', '.join(cleaned.removed)}"))
    return cleaned.content if cleaned else None


def _suffix(content: bytes) -> str:
    return {b"\x89P": ".png", b"\xff\xd8": ".jpg"}.get(content[:2], ".tif")


def _beside(task: Task, about: Mapping[str, Any], picture: bytes) -> list[Path]:
    """Sidecar and thumbnail, not synced: two waits for the disk per case would be most of a small folder's time.

    The ledger holds their sizes, so what a power cut empties is made again.
    """
    text = json.dumps(about, indent=2, allow_nan=False) + "\n"
    return [
        write_atomic(task.out / f"images/{task.case.id}.json", text, sync=False),
        write_atomic(task.out / f"thumbnails/{task.case.id}.png", picture, sync=False),
    ]


def _done(
    task: Task, image: str, paths: list[Path], notes: tuple[tuple[str, str], ...], facts: Mapping[str, Any]
) -> Entry:
    outputs = dict(output_of(task.out, path) for path in paths)
    return Entry(task.case.id, task.case.signature, "ok", outputs=outputs, image=image, notes=notes, facts=facts)


def _facts(volume: Volume, fourth: str) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "shape": list(volume.array.shape),
        "dtype": str(volume.array.dtype),
        "colour": volume.colour,
        "units": volume.units,
    }
    if volume.array.ndim == 4 and not volume.colour:
        facts["fourth_axis"] = fourth
    if volume.spacing is not None:
        facts["spacing_mm"] = [round(float(step), _DECIMALS) for step in volume.spacing]
    if volume.affine is not None:
        facts["orientation"] = orientation(volume.affine)
    return facts


def orientation(affine: np.ndarray) -> str:
    """The side that each axis runs to, as ``RAS``; of an oblique axis, the nearest."""
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    codes, taken = ["?"] * 3, set()
    for axis in np.argsort(-np.abs(directions).max(axis=0)):
        order = [int(side) for side in np.argsort(-np.abs(directions[:, axis])) if int(side) not in taken]
        taken.add(order[0])
        codes[axis] = ("RL", "AP", "SI")[order[0]][int(directions[order[0], axis] < 0)]
    return "".join(codes)
