"""The job: write the files, compare each with the bundle, and only then let the folder appear."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from medmtl.bundle import Bundle, load_bundle
from medmtl.errors import UserError
from medmtl.export import formats, monai_bundle
from medmtl.export.network import USE, Choice, Portable, about, chosen, example_inputs
from medmtl.export.parity import TOLERANCE, Sample, answered, compare, given_samples, image_files, made_samples
from medmtl.files import disk_errors, sha256, write_atomic
from medmtl.io.raster import write_png
from medmtl.predictor import Predictor

RECORD = "export.json"
Kind = Literal["onnx", "torchscript", "torch-export", "monai"]


@dataclass(frozen=True)
class ExportJob:
    """What is exported where. ``images`` are files and folders that both sides answer, beside inputs that are made."""

    bundle: Path
    out: Path
    format: Kind
    tasks: tuple[str, ...] = ()  # none: all of them
    split: bool = False  # one file for each task instead of one for all
    images: tuple[Path, ...] = ()
    size: tuple[int, ...] | None = None  # of what the network sees, where the specification leaves it open
    overwrite: bool = False


@dataclass(frozen=True)
class Exported:
    """Largest difference by file and task, in units of the tolerance's, and how many given images it is over."""

    files: dict[str, dict[str, float]]
    images: int


def export(job: ExportJob) -> Exported:
    """Write ``job.out``: the exported files and ``export.json``; it appears whole, and only if parity holds.

    E-EXP-OUT: it exists. E-EXP-EXTRA: a library is missing. E-EXP-TASK, E-EXP-SIZE: no such task, size unknown.
    E-EXP-MONAI: MONAI cannot express the preprocessing. E-EXP-TRACE: torch cannot express the network. E-EXP-PARITY:
    the file's answers are not the bundle's.
    """
    _check_out(job)
    if job.format != "monai":
        formats.FORMATS[job.format].check()
    elif job.split:
        raise UserError("E-EXP-SPLIT", "a MONAI bundle is one network", "export each with --task", where="--split")
    bundle = load_bundle(job.bundle)
    choices = chosen(bundle.spec, job.tasks, split=job.split, size=job.size)
    images = image_files(job.images)
    with disk_errors(job.out):
        job.out.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(dir=job.out.parent, prefix=f".{job.out.name[:60]}.tmp"))
    try:
        write = _write_monai if job.format == "monai" else _write_file
        differences = {name: found for choice in choices for name, found in write(job, bundle, choice, images, draft)}
        _record(draft, job, bundle, differences, len(images))
        _replace(draft, job.out)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return Exported(differences, len(images))


def _check_out(job: ExportJob) -> None:
    """Refuse what exists, unless it may be overwritten and is an earlier export."""
    if not job.out.exists():
        return
    if not job.overwrite:
        raise UserError("E-EXP-OUT", "it exists already", "choose another folder, or --overwrite", where=str(job.out))
    if not (job.out / RECORD).is_file():
        raise UserError(
            "E-EXP-OUT", f"no earlier export: it has no {RECORD}", "choose a new folder", where=str(job.out)
        )


def _write_file(
    job: ExportJob, bundle: Bundle, choice: Choice, images: tuple[Path, ...], draft: Path
) -> list[tuple[str, dict[str, float]]]:
    """One file of the tasks of ``choice``, compared on made inputs and the given images."""
    assert job.format != "monai"
    form = formats.FORMATS[job.format]
    name = (choice.tasks[0] if job.split else "model") + form.suffix
    network = Portable(bundle, choice.tasks)
    form.write(network, example_inputs(network, bundle.spec, choice), about(bundle, network, choice), draft / name)
    samples = made_samples(bundle.spec, network, choice) + given_samples(bundle.spec, images, choice)
    return [(name, _compared(bundle, network, form.open(draft / name, choice.tasks), samples, name))]


def _write_monai(
    job: ExportJob, bundle: Bundle, choice: Choice, images: tuple[Path, ...], draft: Path
) -> list[tuple[str, dict[str, float]]]:
    """A MONAI bundle: its network compared on made inputs, its workflow from image files on."""
    network = Portable(bundle, choice.tasks, covariates=False)
    monai_bundle.write_monai(draft, bundle, network, choice, about(bundle, network, choice))
    name = monai_bundle.MODEL.as_posix()
    runner = formats.FORMATS["torchscript"].open(draft / name, choice.tasks)
    made = _compared(bundle, network, runner, made_samples(bundle.spec, network, choice), name)
    with tempfile.TemporaryDirectory() as work:
        files = (*_drawn_files(bundle, choice, Path(work)), *images)
        samples = given_samples(bundle.spec, files, choice)
        answers = monai_bundle.run_monai(draft, files, Path(work) / "eval", choice.tasks)
    by_name = {sample.name: answer for sample, answer in zip(samples, answers, strict=True)}
    workflow = monai_bundle.INFERENCE.as_posix()
    ran = compare(lambda sample: by_name[sample.name], Predictor.of(bundle), samples, choice.tasks, file=workflow)
    return [(name, made), (workflow, ran)]


def _compared(
    bundle: Bundle, network: Portable, runner: formats.Runner, samples: list[Sample], name: str
) -> dict[str, float]:
    answer: Callable[[Sample], dict[str, Tensor]] = answered(runner, network, bundle.spec)
    return compare(answer, Predictor.of(bundle), samples, network.tasks, file=name)


def _drawn_files(bundle: Bundle, choice: Choice, folder: Path) -> list[Path]:
    """Two 8-bit images that need every step: larger than the window by an odd number where they may be."""
    free = bundle.spec.preprocess.resize or bundle.spec.preprocess.window
    rng, paths = np.random.default_rng(0), []
    for more in (5, 32):
        height, width = (n + (more if free else 0) for n in choice.size)
        shape = (height, width + (3 if free else 0), bundle.spec.preprocess.channels)
        pixels = rng.integers(0, 256, shape).astype(np.uint8)
        paths.append(write_png(folder / f"{more}.png", pixels[..., 0] if shape[2] == 1 else pixels))
    return paths


def _record(draft: Path, job: ExportJob, bundle: Bundle, differences: dict[str, dict[str, float]], images: int) -> None:
    """``export.json``: what was written, and how near its answers are; no file name of an image."""
    made = sorted(path for path in draft.rglob("*") if path.is_file())
    tree: dict[str, Any] = {
        "bundle": bundle.id,
        "format": job.format,
        "use": USE,
        "files": {path.relative_to(draft).as_posix(): sha256(path) for path in made},
        "parity": {"tolerance": TOLERANCE, "images": images, "largest_difference": differences},
        "torch": torch.__version__,
    }
    write_atomic(draft / RECORD, json.dumps(tree, indent=2) + "\n")


def _replace(draft: Path, out: Path) -> None:
    """The draft under its name; an earlier export is moved aside first, so that a failure leaves one of the two."""
    draft.chmod(0o777 & ~_umask())
    with disk_errors(out):
        if not out.exists():
            draft.replace(out)
            return
        aside = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name[:60]}.old"))
        out.replace(aside)
        draft.replace(out)
        shutil.rmtree(aside, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
