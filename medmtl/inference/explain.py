"""Maps of what each answer depends on, for some cases: volumes in their native space, pictures, slices' weights."""

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medmtl.bundle import ModelSpec, load_bundle
from medmtl.data.case import Case, read_manifest
from medmtl.errors import NOTHING, OK, PARTIAL, UserError
from medmtl.files import write_atomic
from medmtl.inference.attention import attention
from medmtl.inference.montage import focus, heat, labelled, montage, panel_widths
from medmtl.inference.occlusion import occlusion
from medmtl.inference.saliency import saliency
from medmtl.io.nifti_write import write_nifti
from medmtl.io.raster import write_png
from medmtl.io.volume import Volume
from medmtl.predictor import Predictor
from medmtl.process import device_named
from medmtl.tasks.domain import Domain

TABLE = "explained.csv"
_HEAD = ("case_id", "task", "prediction", "status", "code", "message", "files")
_SUFFIXES = (".nii.gz", ".nii", ".hdr", ".img", ".png", ".jpg", ".jpeg", ".tif", ".tiff")


@dataclass(frozen=True)
class ExplainJob:
    """What to explain, with what, where to."""

    bundle: Path
    sources: tuple[Path, ...]  # manifests (.csv), whose covariates are used, and images
    out: Path
    tasks: tuple[str, ...] = ()  # none: all but the domain's
    boxes: int = 0  # occlusion: boxes to an axis, that many forwards to the power of the axes; 0: none
    limit: int | None = None  # of the cases of each manifest, the first so many
    device: str = "auto"


@dataclass(frozen=True)
class Explained:
    """How the job ended: ``exit_code`` 0 all cases, 3 some, 4 none."""

    cases: int
    failed: int
    table: Path
    attention: tuple[Path, ...]  # the tables of slices' weights

    @property
    def exit_code(self) -> int:
        return OK if not self.failed else NOTHING if self.failed == self.cases else PARTIAL


@dataclass
class _Seen:
    """One case, read and preprocessed."""

    name: str
    native: Tensor  # [C, *S] as read, on the grid of the study's volumes
    volume: Volume | None
    image: Tensor  # [C, *S] as the network sees it
    covariates: Tensor | None


def explain(
    job: ExplainJob,
    *,
    tick: Callable[[int, int], None] = lambda done, total: None,
    draw: Callable[[Path], Sequence[Path]] = lambda table: (),
) -> Explained:
    """Write for every case and task, in a folder of the case's name, and ``explained.csv`` with a row for each:

    ``<task>.saliency`` (and ``.occlusion``): NIfTI on the voxels of the file (0 where the network did not look), and a
    PNG of the image, or of three slices of the volume through the largest value, with the map as colour and its scale;
    ``<task>.attention.csv``: the weight of each slice, for heads that pool by attention. A case that cannot be read is
    a row that says why. ``tick`` is told how many cases of how many are done; ``draw`` may make figures of each table
    of weights and returns their files, which the row names too.
    """
    bundle = load_bundle(job.bundle)
    items = _items(job)
    tasks = _tasks(job, bundle.spec)
    _check_out(job.out)
    predictor = Predictor.of(bundle, device=device_named(job.device))
    rows: list[tuple[object, ...]] = []
    tables: list[Path] = []
    failed = 0
    for done, (name, path, case) in enumerate(items, start=1):
        try:
            seen = _read(predictor.spec, name, path, case)
            for task in tasks:
                number, files = _explain(predictor, seen, task, job)
                weights = [file for file in files if file.name.endswith(".attention.csv")]
                files += [figure for table in weights for figure in draw(table)]
                rows.append((name, task, number, "ok", "", "", " ".join(f"{name}/{file.name}" for file in files)))
                tables += weights
        except UserError as error:
            failed += 1
            rows.append((name, "", "", "failed", error.code, f"{error.what} — {error.remedy}", ""))
        tick(done, len(items))
    return Explained(len(items), failed, _write_table(job.out / TABLE, _HEAD, rows), tuple(tables))


def _items(job: ExplainJob) -> list[tuple[str, Path, Case | None]]:
    """(name, image, row of a manifest) of each case, names being folders of the output."""
    found: list[tuple[str, Path, Case | None]] = []
    for source in job.sources:
        if source.suffix.lower() == ".csv":
            manifest = read_manifest(source, check_files=False)
            found += [(case.case_id, manifest.path(case.image), case) for case in manifest.cases[: job.limit]]
        else:
            suffix = next((s for s in _SUFFIXES if source.name.lower().endswith(s)), "")
            found.append((source.name[: len(source.name) - len(suffix)] or source.name, source, None))
    names = [name for name, _, _ in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(
            "E-EXP-NAME", f"two cases are called {twice!r}", "explain them in two runs, or rename one", where="explain"
        )
    return found


def _tasks(job: ExplainJob, spec: ModelSpec) -> list[str]:
    known = [name for name, task in spec.tasks.items() if not isinstance(task, Domain)]
    for name in job.tasks:
        if name not in known:
            raise UserError(
                "E-EXP-TASK", f"the bundle has no task {name!r}", f"choose {', '.join(known)}", where="--task"
            )
    return list(job.tasks) or known


def _check_out(out: Path) -> None:
    if out.exists() and not (out.is_dir() and ((out / TABLE).is_file() or not any(out.iterdir()))):
        raise UserError(
            "E-EXP-OUT", f"it exists and is no folder with {TABLE}", "choose a new or an empty folder", where=str(out)
        )


def _read(spec: ModelSpec, name: str, path: Path, case: Case | None) -> _Seen:
    native, volume = spec.preprocess.read(path)
    known = None if spec.covariates is None or case is None else spec.covariates.of(case)
    return _Seen(name, native, volume, spec.preprocess.apply(native), known)


def _explain(predictor: Predictor, seen: _Seen, task: str, job: ExplainJob) -> tuple[object, list[Path]]:
    """(The prediction, the files written) of one task."""
    known = None if seen.covariates is None else seen.covariates[None]
    decoded = predictor.decode(seen.image[None], known)[task][0]
    number = predictor.spec.tasks[task].row(decoded, None)["prediction"]
    maps = {"saliency": saliency(predictor, seen.image, task, covariates=seen.covariates)}
    if job.boxes:
        maps["occlusion"] = occlusion(predictor, seen.image, task, boxes=job.boxes, covariates=seen.covariates)
    files: list[Path] = []
    for kind, found in maps.items():
        files += _write_map(predictor.spec, seen, found, job.out / seen.name / f"{task}.{kind}")
    weights = attention(predictor, seen.image, task, covariates=seen.covariates)
    if weights is not None and weights.ndim == 1:
        rows = list(_slices(predictor.spec, seen, weights))
        files.append(
            _write_table(job.out / seen.name / f"{task}.attention.csv", ("slice", "position_mm", "weight"), rows)
        )
    return number, files


def _write_map(spec: ModelSpec, seen: _Seen, found: npt.NDArray[np.float64], path: Path) -> list[Path]:
    """``path`` + .nii.gz (of a volume) and .png."""
    maps = torch.from_numpy(found.astype(np.float32))[None]
    restored = spec.preprocess.restore(maps, seen.native.shape[1:]).maps
    strength = restored[0].numpy().astype(np.float64) / max(float(np.abs(found).max()), 1e-12)
    files, picture, finish = [], seen.native.numpy(), None
    if spec.preprocess.volume is not None and seen.volume is not None:
        grid = spec.preprocess.volume.place(seen.volume)
        native = grid.to_native(restored)[0].numpy()
        files.append(write_nifti(path.with_name(f"{path.name}.nii.gz"), Volume(native, seen.volume.affine)))
        peak = np.unravel_index(int(np.abs(strength).argmax()), strength.shape) if strength.any() else ()
        at = tuple(int(i) for i in peak) or focus(None, strength.shape)
        axes, shape = spec.preprocess.volume.axes, strength.shape
        cut = partial(montage, at=at, axes=axes, spacing=grid.spacing_mm)
        picture, strength = cut(picture[0])[None], cut(strength)
        widths, most = panel_widths(shape, grid.spacing_mm), float(np.abs(found).max())
        finish = partial(
            labelled, widths=widths, axes=axes, millimetres=min(grid.spacing_mm),
            scale=(-most if (restored < 0).any() else 0.0, most),
        )  # fmt: skip
    colour = np.moveaxis(np.repeat(picture[:1], 3, 0) if len(picture) != 3 else picture, 0, -1)
    image = np.round(colour * 255).astype(np.uint8)
    shown = heat(image, strength)
    return [*files, write_png(path.with_name(f"{path.name}.png"), shown if finish is None else finish(shown))]


def _slices(spec: ModelSpec, seen: _Seen, weights: npt.NDArray[np.float64]) -> Iterator[tuple[object, ...]]:
    """(Number of the slice along the first axis of the network's grid, its middle in mm along that axis, weight)."""
    assert spec.preprocess.volume is not None and seen.volume is not None
    grid = spec.preprocess.volume.place(seen.volume)
    shape = tuple(seen.native.shape[1:])
    maps = torch.from_numpy(weights.astype(np.float32)).view(1, -1, 1, 1).expand(-1, -1, *seen.image.shape[2:])
    placed, inside = spec.preprocess.restore(maps, shape)
    middle = [n // 2 for n in shape]
    axis = "LRPAIS".index(spec.preprocess.volume.axes[0]) // 2
    for number in range(shape[0]):
        place = (number, *middle[1:])
        if inside[place]:
            position = grid.affine[axis] @ (*place, 1.0)
            yield number, f"{position:.3f}", f"{float(placed[(0, *place)]):.6g}"


def _write_table(path: Path, head: Sequence[str], rows: Sequence[Sequence[object]]) -> Path:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(rows)
    return write_atomic(path, stream.getvalue())
