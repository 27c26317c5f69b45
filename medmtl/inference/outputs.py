"""The files of a case: where each lies below the output folder, and which of them is a task's mask."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medmtl.errors import UserError
from medmtl.files import disk_errors, inside
from medmtl.inference import writers
from medmtl.inference.prediction import CasePrediction
from medmtl.inference.writers import Output, overlay
from medmtl.io.volume import Volume
from medmtl.tasks import AnyTask
from medmtl.tasks.segmentation import Segmentation

CASES, MASKS, OVERLAYS = "cases", "masks", "overlays"  # folders below the output folder
_MASKS = (".nii.gz", ".seg.dcm")  # of a volume, the first that is written


@dataclass(frozen=True)
class Files:
    """The files of a case; their names are relative to the output folder."""

    paths: Mapping[str, Path]  # by name
    masks: Mapping[str, str]  # of each dense task, where one is written
    warnings: tuple[str, ...] = ()  # what could not be written, and why


def write_case(case: CasePrediction, out: Path, output: Output, *, overlays: bool) -> Files:
    """Write the files of a case below ``out``.

    Of a picture ``masks/<task>/<name>.png`` and ``overlays/<task>/<name>.png``; everything else in ``cases/<name>/``.
    """
    paths: dict[str, Path] = {}
    masks: dict[str, str] = {}
    if not isinstance(case.image, Volume):
        for task, dense in case.dense.items():
            masks[task], picture = picture_files(case.source.name, task)
            with disk_errors(out / masks[task]):
                paths[masks[task]] = overlay.write_mask(inside(out, masks[task]), dense.labels)
            if overlays:
                with disk_errors(out / picture):
                    path = inside(out, picture)
                    paths[picture] = overlay.write_overlay(path, case.image, dense.labels, seen=dense.inside)
    output = _without_default(case, output)
    if not output.formats:
        return Files(paths, masks)
    folder = inside(out, f"{CASES}/{case.source.name}")
    with disk_errors(folder):
        written = writers.write_case(case, folder, output)
    names = {path.resolve().relative_to(out.resolve()).as_posix(): path for path in written.paths}
    for task in case.dense:
        own = [name for suffix in _MASKS for name in names if name.endswith(f"/{task}{suffix}")]
        masks |= {task: own[0]} if own and task not in masks else {}
    return Files(paths | names, masks, written.warnings)


def _without_default(case: CasePrediction, output: Output) -> Output:
    """Without the NIfTI of what has none: it is written unless something else is asked for, so nobody missed it."""
    if isinstance(case.image, Volume) and case.dense:
        return output
    return output.model_copy(update={"formats": tuple(name for name in output.formats if name != "nifti")})


def check_coding(output: Output, tasks: Mapping[str, AnyTask]) -> None:
    """Refuse a code for what the bundle does not have: nothing would ever carry it (``E-PRE-CODING``)."""
    answers = {name: [str(answer) for answer in _answers(task)] for name, task in tasks.items()}
    known = {*answers, *(f"{name}.{answer}" for name, all_ in answers.items() for answer in all_)}
    known |= {answer for all_ in answers.values() for answer in all_}
    for name in output.coding:
        if name not in known:
            raise UserError(
                "E-PRE-CODING",
                f"no task or class of the bundle is called {name!r}",
                f"choose of {', '.join(sorted(known))}",
                where="coding",
            )


def _answers(task: Any) -> tuple[Any, ...]:
    """What of a task has a code beside its name: classes, of a map those of the foreground, or levels."""
    if isinstance(task, Segmentation):
        return task.classes[1:]
    return tuple(getattr(task, "classes", None) or getattr(task, "levels", None) or ())


def picture_files(name: str, task: str) -> tuple[str, str]:
    """Mask and overlay of a picture, below the output folder. Distinct: every picture's name ends in its suffix."""
    return f"{MASKS}/{task}/{name}.png", f"{OVERLAYS}/{task}/{name}.png"


def leftovers(out: Path, name: str, tasks: Mapping[str, Any]) -> list[str]:
    """Everything that a case whose writing failed may have left, below ``out``."""
    found = [file for task in tasks for file in picture_files(name, task)]
    folder = inside(out, f"{CASES}/{name}")
    if folder.is_dir():
        found += [path.resolve().relative_to(out.resolve()).as_posix() for path in folder.iterdir() if path.is_file()]
    return found
