"""The masks of a case: files beside its image, segmentations and structure sets, each checked. Runs in a worker."""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from medmtl.errors import UserError
from medmtl.ingest.cases import PlannedCase
from medmtl.ingest.tasks import Task
from medmtl.io.dicom.lattice import Lattice
from medmtl.io.masks import check_labels, check_mask
from medmtl.io.nifti import read_nifti
from medmtl.io.raster import read_mask
from medmtl.io.reasons import refusal
from medmtl.io.volume import Note, Volume


def mask_name(case: PlannedCase, target: str, suffix: str) -> str:
    """Where the mask of a case lies in the study."""
    return f"masks/{target}/{case.id}{suffix}"


def volume_masks(task: Task, image: Volume) -> tuple[dict[str, Volume], list[Note]]:
    """The masks of a volume by target, and what there is to say of them. A wrong one refuses the case: half a label is
    none.
    """
    found, notes = _drawn(task, image)
    for target, path in task.case.masks.items():
        with _about(target):
            mask = read_nifti(task.source / path, max_bytes=task.max_bytes, labels=True)
            found[target] = check_mask(mask, image, values=task.mask_values.get(target))
        notes += [_of(target, note) for note in found[target].notes]
    return found, notes


def raster_masks(task: Task, image: npt.NDArray[np.generic]) -> tuple[dict[str, npt.NDArray[np.generic]], list[Note]]:
    """The masks of a picture [H, W] or [H, W, 3] by target, and what there is to say of them."""
    found, notes = {}, []
    for target, path in task.case.masks.items():
        with _about(target):
            mask = read_mask(task.source / path, page=task.case.page or 0)
            if mask.shape != image.shape[:2]:
                raise refusal("E-MASK-SHAPE", f"it is {list(mask.shape)}, the image {list(image.shape[:2])}")
            notes += [_of(target, note) for note in check_labels(mask, task.mask_values.get(target))]
            found[target] = mask
    return found, notes


def _of(target: str, note: Note) -> Note:
    return Note(note.code, f"mask {target}: {note.what}")


@contextmanager
def _about(target: str) -> Iterator[None]:
    """A refusal says which mask it is about."""
    try:
        yield
    except UserError as error:
        raise UserError(error.code, f"mask {target}: {error.what}", error.remedy) from error


def _drawn(task: Task, image: Volume) -> tuple[dict[str, Volume], list[Note]]:
    """The masks that segmentations and structure sets draw on a DICOM volume, by target, and their notes."""
    files: dict[tuple[str, str], dict[str, tuple[int, ...]]] = defaultdict(dict)
    for target, drawing in task.case.drawn.items():
        files[drawing.path, drawing.kind][target] = drawing.numbers
    found: dict[str, Volume] = {}
    notes: list[Note] = []
    for (path, kind), wanted in files.items():
        with _about(", ".join(wanted)):
            masks, said = _read(task, path, kind, wanted, _lattice(task, image))
        notes += [_of(target, note) for target, of_one in said.items() for note in of_one]
        for target, mask in masks.items():
            if (count := len(wanted[target])) > 1:
                notes.append(_of(target, Note("W-SEG-MERGED", f"{count} things have one name, and are one mask")))
            notes += [_of(target, note) for note in check_labels(mask, None)]
            found[target] = replace(image, array=mask, colour=False, time_step_s=None, units="", notes=())
    return found, notes


def _read(
    task: Task, path: str, kind: str, wanted: dict[str, tuple[int, ...]], lattice: Lattice
) -> tuple[dict[str, npt.NDArray[np.uint8]], dict[str, list[Note]]]:
    if kind == "SEG":
        from medmtl.io.dicom.seg import segment_masks  # highdicom takes longer to import than most volumes to make

        return segment_masks(task.source / path, wanted, lattice), {}
    from medmtl.io.dicom.rtstruct import contour_masks

    return contour_masks(task.source / path, wanted, lattice)


def _lattice(task: Task, image: Volume) -> Lattice:
    if task.case.stack is not None and task.case.stack.regrid is not None:
        raise refusal("E-SEG-PLACE", "the image was resampled, the mask was drawn on the slices that it was made of")
    lattice = Lattice.of(image)
    if lattice is None:
        raise refusal("E-SEG-PLACE", "nothing says where the image lies in the patient")
    return lattice
