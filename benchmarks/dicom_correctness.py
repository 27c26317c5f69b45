"""Which readers stack irregular DICOM series without a word: every phantom through every reader, judged by its truth.

python benchmarks/dicom_correctness.py                         # all kinds, all installed readers
python benchmarks/dicom_correctness.py --out docs/dicom-readers.md
python benchmarks/dicom_correctness.py --kinds tilt gap-middle --readers medmtl dcm2niix -v

Each reader gets the folder as its documentation says, in a process of its own with a time limit. Outcomes:

- right: all volumes came back, every voxel within half a step of quantisation and 0.1 mm of where it lies, nothing else
- noted: right, or all that came back is (on whatever grid, to interpolation), with a warning about what was done
- refused: nothing came back, or an error says what did not; what came back beside it is right
- warned, wrong: a wrong, merged, partial or superfluous volume, with a warning
- SILENTLY WRONG: a wrong volume without a word, or one that is missing without a word
- crashed: killed by a signal, or by the time limit

A warning is a Python warning, a line on standard error, or a line of the reader's log that says warning or error; what
it prints for the regular series too is none.
"""

import argparse
import gc
import importlib
import json
import logging
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import nibabel
import numpy as np
from rich.progress import track

from medmtl.data.synthetic.dicom import KINDS, Truth, write_phantom
from medmtl.data.synthetic.dicom_truth import flaws, untrue
from medmtl.errors import UserError
from medmtl.io.dicom.header import NotDicom, read_header
from medmtl.io.dicom.load import load
from medmtl.io.dicom.series import plan

OUTCOMES = ("right", "noted", "refused", "warned, wrong", "SILENTLY WRONG", "crashed")
MARKS = {"right": "right", "noted": "noted", "refused": "refused", "warned, wrong": "*wrong, warned*",
         "SILENTLY WRONG": "**SILENTLY WRONG**", "crashed": "crashed"}  # fmt: skip
TIME_LIMIT_S = 60
RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
PAGE = """# Readers of irregular DICOM folders

Written by `benchmarks/dicom_correctness.py` with {versions}. Every folder is drawn by `medmtl.data.synthetic.dicom`.

{explained}

{table}

Two rows rest on a convention: dcm2niix and MONAI's PydicomReader leave MONOCHROME1 and PixelPaddingValue to the
user of the volume, and their column calls that wrong, because nothing in what they return tells that user. A guess
counts as wrong where the files do not hold the answer (no orientation, a slope of 0), even if it is the usual one.
"""
Volumes = list[tuple[np.ndarray, np.ndarray | None]]


@dataclass
class Answer:
    """What a reader made of a folder: volumes with RAS+ affines, what it warned of, and its errors."""

    volumes: Volumes = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


def medmtl(folder: Path, scratch: Path) -> Answer:
    answer, headers = Answer(), []
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        try:
            headers.append(read_header(path))
        except NotDicom:
            continue
        except UserError as error:
            answer.errors.append(f"{error.code} {error.what}")
    planned = plan(headers)
    answer.errors += [f"{one.error.code} {one.error.what}" for one in planned.refused]
    for stack in planned.volumes:
        try:
            volume = load(stack)
        except UserError as error:
            answer.errors.append(f"{error.code} {error.what}")
            continue
        answer.volumes.append((volume.array, volume.affine))
        answer.warnings += [f"{note.code} {note.what}" for note in volume.notes]
    return answer


def simpleitk(folder: Path, scratch: Path) -> Answer:
    import SimpleITK

    answer = Answer()
    for place in _folders(folder):
        for series in SimpleITK.ImageSeriesReader.GetGDCMSeriesIDs(str(place)):
            reader = SimpleITK.ImageSeriesReader()
            reader.SetFileNames(SimpleITK.ImageSeriesReader.GetGDCMSeriesFileNames(str(place), series))
            try:
                image = reader.Execute()
            except RuntimeError as error:
                answer.errors.append(str(error))
                continue
            answer.volumes.append(_from_itk(image))
    return answer


def _from_itk(image) -> tuple[np.ndarray, np.ndarray | None]:
    import SimpleITK

    size = image.GetDimension()
    array = SimpleITK.GetArrayFromImage(image)
    colour = image.GetNumberOfComponentsPerPixel() > 1
    array = np.moveaxis(array, -1, 0).T if colour else array.T
    lps = np.eye(4)
    direction = np.array(image.GetDirection()).reshape(size, size)[:3, :3]
    lps[:3, :3] = direction * np.array(image.GetSpacing())[:3]
    lps[:3, 3] = np.array(image.GetOrigin())[:3]
    return array, RAS @ lps


def _monai(reader: str, folder: Path) -> Answer:
    from monai.transforms import LoadImage

    images = [
        LoadImage(reader=reader, image_only=True, ensure_channel_first=False)(str(one)) for one in _folders(folder)
    ]
    return Answer([(np.asarray(image), np.asarray(image.affine, np.float64)) for image in images])


def _folders(folder: Path) -> list[Path]:
    """The folders that hold files: these readers do not look further down."""
    return sorted({path.parent for path in folder.rglob("*") if path.is_file()})


def monai_itk(folder: Path, scratch: Path) -> Answer:
    return _monai("ITKReader", folder)


def monai_pydicom(folder: Path, scratch: Path) -> Answer:
    return _monai("PydicomReader", folder)


def dcm2niix(folder: Path, scratch: Path) -> Answer:
    program = Path(sys.executable).with_name("dcm2niix")
    done = subprocess.run(
        [program, "-z", "n", "-b", "n", "-d", "9", "-f", "%s_%d_%p", "-o", scratch, folder],
        capture_output=True, text=True, errors="replace", timeout=TIME_LIMIT_S, check=False,
    )  # fmt: skip
    answer = Answer(_niftis(scratch))
    said = [line for line in (done.stdout + done.stderr).splitlines() if re.search("warning|error", line, re.I)]
    answer.warnings = said
    if done.returncode < 0:
        raise ChildProcessError(f"signal {-done.returncode}")
    if done.returncode or not answer.volumes:
        answer.errors = [*said, *done.stdout.splitlines()[-1:], f"exit {done.returncode}"]
        answer.warnings = []
    return answer


def dicom2nifti(folder: Path, scratch: Path) -> Answer:
    import dicom2nifti as library

    library.convert_directory(folder, scratch, compression=False, reorient=False)
    return Answer(_niftis(scratch))


def _niftis(folder: Path) -> Volumes:
    """NIfTI files, RGB as colour; 4-D ones are cut into volumes by the judge."""
    volumes: Volumes = []
    for path in sorted(folder.rglob("*.nii")):
        image = nibabel.load(path)
        array = np.asanyarray(image.dataobj)
        if array.dtype.names:
            array = np.stack([array[name] for name in array.dtype.names], -1)
        volumes.append((array, image.affine))
    return volumes


@dataclass(frozen=True)
class Reader:
    title: str
    needs: str  # what must be importable, or the program's package
    read: Callable[[Path, Path], Answer]


READERS: Mapping[str, Reader] = {
    "medmtl": Reader("medmtl", "medmtl", medmtl),
    "simpleitk": Reader("SimpleITK series", "SimpleITK", simpleitk),
    "monai-itk": Reader("MONAI ITKReader", "itk", monai_itk),
    "monai-pydicom": Reader("MONAI PydicomReader", "monai", monai_pydicom),
    "dcm2niix": Reader("dcm2niix", "dcm2niix", dcm2niix),
    "dicom2nifti": Reader("dicom2nifti", "dicom2nifti", dicom2nifti),
}


def _installed(reader: Reader) -> bool:
    try:
        library = importlib.import_module(reader.needs)
        if reader.title.startswith("MONAI"):
            importlib.import_module("monai.transforms")
        for lazy in ("imread", "ImageSeriesReader", "GDCMSeriesFileNames", "GDCMImageIO"):
            getattr(library, lazy, None)  # ITK loads what is behind a name when asked: here once, not in each child
    except ImportError:
        return False
    return True


def _shape_of(message: str) -> str:
    """A message without what changes from folder to folder: paths, numbers."""
    return re.sub(r"\S*/\S*|0x[0-9a-f]+|[0-9.]+", "", message)


def judge(truth: Truth, answer: Answer) -> tuple[str, str]:
    """Outcome and the reason for it."""
    pieces = list(_three_dimensional(answer, truth))
    left, wrong, loose = list(truth.volumes), [], []
    for array, affine in pieces:
        faults = {n: flaws(want, array, affine) for n, want in enumerate(left)}
        match = next((n for n, fault in faults.items() if not fault), None)
        if match is not None:
            left.pop(match)
            continue
        phantoms = [want.phantom for want in truth.volumes if want.phantom] or [truth.phantom]
        false = untrue(phantoms, array, affine)
        (wrong if false else loose).append(
            min(faults.values(), key=len, default=false) or "a volume though the folder holds none that is right"
        )
    missing = [want for want in left if not want.optional]
    owed = [want for want in truth.volumes if not want.optional]
    told, failed = bool(answer.warnings), bool(answer.errors)
    unsaid = "warned, wrong" if told or failed else "SILENTLY WRONG"
    if wrong:
        return unsaid, "; ".join(dict.fromkeys(wrong))
    if truth.warn and not (told or failed):
        return unsaid, "incomplete without a word"
    if not pieces or (failed and (missing or not owed)):
        return "refused", (answer.errors or ["nothing came back"])[0]
    if loose and told and not missing:
        return "noted", f"{loose[0]}, but what came back is true"
    if missing or loose or not owed:
        return unsaid, f"{len(pieces)} volumes for {len(owed)}" + (f" ({loose[0]})" if loose else "")
    return ("noted", answer.warnings[0]) if told else ("right", "")


def _three_dimensional(answer: Answer, truth: Truth) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """Volumes of a 4-D image one by one; a two-dimensional image of a place as one slice."""
    placed = any(want.affine is not None for want in truth.volumes) or not truth.volumes
    for array, affine in answer.volumes:
        if placed and array.ndim == 4:
            yield from ((array[..., n], affine) for n in range(array.shape[-1]))
        elif placed and array.ndim == 2:
            yield array[..., None], affine
        else:
            yield array, affine


def _isolated(reader: str, folder: Path, truth: Truth, usual: set[str]) -> tuple[str, str, list[str]]:
    """Outcome, reason and warnings of a reader in a child process, whose death counts as a crash.

    ``usual`` are messages that it prints for a regular series too, and that hence warn of nothing.
    """
    with tempfile.TemporaryDirectory() as place:
        log, verdict = Path(place) / "log.txt", Path(place) / "verdict.json"
        child = multiprocessing.get_context("fork").Process(
            target=_child, args=(reader, folder, truth, usual, Path(place))
        )
        child.start()
        child.join(TIME_LIMIT_S)
        if child.is_alive():
            child.kill()
            child.join()
            return "crashed", f"no answer in {TIME_LIMIT_S} s", []
        if not verdict.is_file():
            return "crashed", f"exit {child.exitcode} {log.read_text(errors='replace')[-200:]}", []
        outcome, why, said = json.loads(verdict.read_text())
        return outcome, why, said


def _child(reader: str, folder: Path, truth: Truth, usual: set[str], place: Path) -> None:
    log, scratch = place / "log.txt", place / "nifti"
    scratch.mkdir()
    stream = log.open("w")
    for descriptor in (1, 2):
        os.dup2(stream.fileno(), descriptor)
    sys.stdout = sys.stderr = stream
    logging.basicConfig(stream=stream, level=logging.WARNING, force=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            answer = READERS[reader].read(folder, scratch)
        except ChildProcessError:
            raise
        except Exception as error:  # whatever a reader throws is its way to refuse
            answer = Answer(errors=[f"{type(error).__name__}: {error}"])
    stream.flush()
    answer.warnings += [
        str(one.message) for one in caught if not issubclass(one.category, DeprecationWarning | FutureWarning)
    ]
    said = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    if reader not in ("dcm2niix", "medmtl"):  # what these two say has been collected from where they say it
        answer.warnings += said
        answer.errors += [] if answer.volumes else said[-1:]
    everything = list(answer.warnings)
    answer.warnings = [line for line in answer.warnings if _shape_of(line) not in usual]
    outcome, why = judge(truth, answer)
    (place / "verdict.json").write_text(json.dumps([outcome, " ".join(why.split())[:300], everything]))


def table(results: Mapping[str, Mapping[str, tuple[str, str]]], readers: list[str]) -> str:
    """Markdown: a row for each kind, a column for each reader, counts at the bottom."""
    installed = [name for name in readers if name in next(iter(results.values()))]
    lines = ["| folder | what is unusual | " + " | ".join(READERS[name].title for name in readers) + " |"]
    lines.append("|---" * (2 + len(readers)) + "|")
    for kind, row in results.items():
        cells = [MARKS[row[name][0]] if name in row else "not installed" for name in readers]
        lines.append(f"| `{kind}` | {KINDS[kind].what} | " + " | ".join(cells) + " |")
    counts = {name: Counter(row[name][0] for row in results.values()) for name in installed}
    for outcome in OUTCOMES:
        cells = [str(counts[name][outcome]) if name in counts else "" for name in readers]
        lines.append(f"| **{outcome}** | of {len(results)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _versions() -> str:
    installed = {one.metadata["Name"].lower(): one.version for one in metadata.distributions()}
    named = ("medmtl", "simpleitk", "itk", "monai", "pydicom", "dcm2niix", "dicom2nifti")
    return ", ".join(f"{name} {installed[name]}" for name in named if name in installed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="also write the table into this Markdown file")
    parser.add_argument("--kinds", nargs="+", choices=sorted(KINDS), default=list(KINDS), metavar="KIND")
    parser.add_argument("--readers", nargs="+", choices=sorted(READERS), default=list(READERS), metavar="READER")
    parser.add_argument("-v", "--verbose", action="store_true", help="print why")
    options = parser.parse_args()
    present = [name for name in options.readers if _installed(READERS[name])]
    gc.freeze()  # a child that collects garbage would copy all of this process
    results: dict[str, dict[str, tuple[str, str]]] = {}
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        regular = write_phantom(Path(place) / "regular", "axial")
        usual = {
            name: {_shape_of(line) for line in _isolated(name, Path(place) / "regular", regular, set())[2]}
            for name in present
        }
        for kind in track(options.kinds, "phantoms", transient=True, disable=not sys.stderr.isatty()):
            folder = Path(place) / kind
            truth = write_phantom(folder, kind)
            results[kind] = {name: _isolated(name, folder, truth, usual[name])[:2] for name in present}
            shutil.rmtree(folder)
            if options.verbose:
                for name, (outcome, why) in results[kind].items():
                    print(f"{kind:<24}{name:<15}{outcome:<16}{why}", flush=True)
    text = table(results, options.readers)
    print(text)
    print(f"\n{len(results)} folders, {time.monotonic() - start:.0f} s")
    if options.out:
        options.out.write_text(
            PAGE.format(explained="\n".join(__doc__.splitlines()[6:]), versions=_versions(), table=text)
        )


if __name__ == "__main__":
    main()
