"""What a model was trained on, in a few numbers: is a new image one of those that its results were measured on?

A *fingerprint* holds the range of every property of the training images (size, voxel size, intensities, modality) and
where their pooled encoder features lie. It is made when a bundle is, stored beside its weights with its hash in the
specification's provenance, and compared with every input that the bundle is asked about.

The distance of an image to the training images is ``d = sqrt(mean_j (f_j - m_j)^2 / v_j)`` with mean m and variance v
of each feature j: Mahalanobis's distance with a diagonal covariance, about 1 for a training image. How large it gets on
images of the same kind is measured on cases that the model was not fitted on, where there are any.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medmtl.data.case import Case
from medmtl.data.grid import Grid, RangeIntensity
from medmtl.data.preprocess import Preprocess
from medmtl.errors import SafetyRefusal, UserError
from medmtl.files import inside, write_atomic
from medmtl.io.volume import Volume
from medmtl.predictor import Predictor

FILE, FORMAT, KEY = "fingerprint.json", 1, "fingerprint_sha256"
Level = Literal["in_range", "warn", "refuse", "unknown"]
_SAMPLE = 1_000_000  # values that a quantile looks at, evenly spread
_CASES = {"picture": 300, "volume": 40}  # that are looked at
_TRIMMED = 200  # from so many cases on, the extreme 0.5 % at both ends are not part of the range
_WARN, _REFUSE = 0.25, 2.0  # how far beyond the range, in its own width
_WARN_FEATURES, _REFUSE_FEATURES = 1.25, 3.0  # times the distance that 99 % of the cases stay below
_CALIBRATED = 100  # held-out cases without which 99 % of them are too few to refuse by: a patient's images are alike
_LOG = ("_px", "_mm")  # compared as ratios
_NARROWEST = {"log": math.log(1.25), "unit": 0.05}  # a range is never narrower than this
_LABELS = ("modality", "body_part")  # meta columns of a study, and what DICOM headers say
_HARD = ("kind", "channels", "modality")  # another one is refused, whatever its distance


@dataclass(frozen=True)
class Facts:
    """The properties of one image; lengths in px or mm, intensities in units that ``look`` describes."""

    kind: Literal["picture", "volume"]
    channels: int
    numbers: Mapping[str, float]
    labels: Mapping[str, str] = field(default_factory=dict)  # empty where unknown
    features: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Fingerprint:
    """The training images' properties."""

    cases: int
    kind: str
    channels: int
    ranges: Mapping[str, tuple[float, float]]
    labels: Mapping[str, tuple[str, ...]]  # every value that occurs; a label that no case has is left out
    mean: tuple[float, ...] = ()
    variance: tuple[float, ...] = ()
    distance_99: float = 0.0  # the 99 % quantile of the distances
    held_out: int = 0  # cases that it was measured on, which the model was not fitted on

    def distance(self, features: Sequence[float]) -> float:
        """The distance of an image to the training images."""
        assert len(features) == len(self.mean), (len(features), len(self.mean))
        offset = np.asarray(features) - np.asarray(self.mean)
        return float(np.sqrt(np.mean(offset**2 / np.asarray(self.variance))))


@dataclass(frozen=True)
class Verdict:
    """How an image compares: the worst of its fields, and what is wrong with each that is not in range."""

    level: Level
    fields: Mapping[str, str] = field(default_factory=dict)
    distance: float | None = None


def look(
    pixels: Tensor, *, volume: Volume | None = None, grid: Grid | None = None, preprocess: Preprocess, **labels: str
) -> Facts:
    """The facts of a decoded image ``pixels`` [C, *S] in [0, 1], before any other preprocessing.

    Intensities of a picture, and of a volume scaled by its own percentiles (MR), are in [0, 1]; of a volume with a
    fixed range (CT) they are the file's own. Sizes of a volume are along the tensor's axes, however it is stored.
    """
    values = pixels.numpy()
    if volume is not None and preprocess.volume is not None:
        if isinstance(preprocess.volume.intensity, RangeIntensity):
            values = np.asarray(volume.array)[None]
        assert grid is not None
        numbers = _size_of_volume(volume, grid)
    else:
        numbers = {"height_px": float(values.shape[1]), "width_px": float(values.shape[2])}
    known = {name: text for name in _LABELS if (text := labels.get(name, "").strip().upper())}
    if volume is not None and grid is not None:
        known["plane"] = _plane(numbers)
    kind: Literal["picture", "volume"] = "picture" if preprocess.volume is None else "volume"
    return Facts(kind, len(pixels), {**numbers, **_intensities(values)}, known)


def _size_of_volume(volume: Volume, grid: Grid) -> dict[str, float]:
    native = [volume.array.shape[axis] for axis in grid.turn.source]
    new = np.linalg.norm(grid.affine[:3, :3], axis=0)
    old = [float(size) / ratio for size, ratio in zip(new, grid.ratios, strict=True)]
    spacing = {f"spacing_{axis}_mm": size for axis, size in zip("dhw", old, strict=True)}
    return spacing | {f"extent_{axis}_mm": n * size for axis, n, size in zip("dhw", native, old, strict=True)}


def _plane(numbers: Mapping[str, float]) -> str:
    """Along which axis of the tensor the slices are stacked, or that the voxels are cubes (within a fifth)."""
    sizes = {axis: numbers[f"spacing_{axis}_mm"] for axis in "dhw"}
    axis = max(sizes, key=lambda name: sizes[name])
    return "isotropic" if sizes[axis] < 1.2 * min(sizes.values()) else f"slices along {axis}"


def _intensities(values: npt.NDArray[Any]) -> dict[str, float]:
    flat = values.reshape(len(values), -1)
    flat = flat[:, :: max(1, flat.size // _SAMPLE)].astype(np.float64)
    low, middle, high = np.percentile(flat, (1, 50, 99))
    found = {"mean": flat.mean(), "std": flat.std(), "p01": low, "p50": middle, "p99": high}
    if len(flat) == 3:
        found |= {f"{name}_mean": row.mean() for name, row in zip(("red", "green", "blue"), flat, strict=True)}
    return {name: float(value) for name, value in found.items()}


def fingerprint(facts: Sequence[Facts], *, held_out: Sequence[Facts] = ()) -> Fingerprint:
    """The fingerprint of training images. ``held_out``: images of the same kind that the model was not fitted on."""
    assert facts, "a fingerprint needs an image"
    first = facts[0]
    names = [name for name in first.numbers if all(name in other.numbers for other in facts)]
    labels = {
        name: tuple(sorted({other.labels[name] for other in facts if name in other.labels}))
        for name in (*_LABELS, "plane")
    }
    made = Fingerprint(
        len(facts),
        first.kind,
        first.channels,
        {name: _range([other.numbers[name] for other in facts]) for name in names},
        {name: values for name, values in labels.items() if values},
    )
    vectors = [other.features for other in facts if other.features is not None]
    if len(vectors) < 2:
        return made
    table = np.asarray(vectors, dtype=np.float64)
    variance = table.var(axis=0, ddof=1)
    variance = np.maximum(variance, max(1e-12, 1e-3 * float(variance.mean())))  # a dead feature measures nothing
    known = Fingerprint(**{**vars(made), "mean": tuple(table.mean(axis=0)), "variance": tuple(variance)})
    others = [other.features for other in held_out if other.features is not None]
    distances = [known.distance(features) for features in others or vectors]
    return Fingerprint(**{**vars(known), "distance_99": float(np.quantile(distances, 0.99)), "held_out": len(others)})


def _range(values: Sequence[float]) -> tuple[float, float]:
    if len(values) < _TRIMMED:
        return min(values), max(values)
    low, high = np.quantile(values, (0.005, 0.995))
    return float(low), float(high)


def compare(known: Fingerprint, facts: Facts) -> Verdict:
    """Whether an image is like those of the fingerprint; what is unknown of either is not compared."""
    levels: dict[str, Level] = {}
    words: dict[str, str] = {}

    def note(name: str, level: Level, text: str) -> None:
        levels[name], words[name] = level, text

    for name, found, expected in (("kind", facts.kind, known.kind), ("channels", facts.channels, known.channels)):
        if found != expected:
            note(name, "refuse", f"{found}, trained on {expected}")
    for name, text in facts.labels.items():
        if name in known.labels and text not in known.labels[name]:
            shown = text if name == "plane" else "another one"  # free text of a header may name anything
            note(name, "refuse" if name in _HARD else "warn", f"{shown}, trained on {', '.join(known.labels[name])}")
    for name, (low, high) in known.ranges.items():
        if name in facts.numbers and (level := _beyond(name, facts.numbers[name], low, high)) is not None:
            note(name, level, f"{facts.numbers[name]:.4g}, trained on {low:.4g} to {high:.4g}")
    distance = None
    if known.mean and facts.features is not None:
        distance = known.distance(facts.features)
        ratio = distance / max(known.distance_99, 1e-12)
        if not ratio <= _WARN_FEATURES:
            text = f"{ratio:.2g} times as far from the training images as 99 % of images of their kind"
            sure = known.held_out >= _CALIBRATED or not math.isfinite(ratio)
            note("features", "refuse" if sure and not ratio <= _REFUSE_FEATURES else "warn", text)
    worst: Level = "refuse" if "refuse" in levels.values() else "warn" if levels else "in_range"
    return Verdict(worst, words, distance)


def _beyond(name: str, value: float, low: float, high: float) -> Level | None:
    if not math.isfinite(value):
        return "refuse"
    if name.endswith(_LOG):
        value, low, high = (math.log(max(x, 1e-6)) for x in (value, low, high))
        least = _NARROWEST["log"]
    else:
        least = _NARROWEST["unit"] * max(1.0, abs(low), abs(high))
    beyond = max(low - value, value - high, 0.0) / max(high - low, least)
    return "refuse" if beyond > _REFUSE else "warn" if beyond > _WARN else None


@contextmanager
def pooled(predictor: Predictor) -> Iterator[list[Tensor]]:
    """Collects, while the block runs, the mean over space of the encoder's coarsest map: a tensor [B, F] per call."""
    calls: list[Tensor] = []

    def keep(module: torch.nn.Module, inputs: Any, maps: Any) -> None:
        calls.append(maps[-1].detach().float().flatten(2).mean(2).cpu())

    handle = predictor.model.get_submodule("encoder").register_forward_hook(keep)
    try:
        yield calls
    finally:
        handle.remove()


def features_of(calls: Sequence[Tensor], images: int, views: int) -> list[tuple[float, ...]] | None:
    """The features of each image from the calls of one decoding: of the first view, or the mean over an image's
    windows. None where windows of several images went through together."""
    if len(calls) == views and all(len(call) == images for call in calls):
        table = calls[0]
    elif images == 1 and calls:
        table = torch.cat(list(calls)).mean(0, keepdim=True)
    else:
        return None
    return [tuple(float(x) for x in row) for row in table]


def training_fingerprint(
    predictor: Predictor, cases: Sequence[Case], root: Path, *, held_out: Sequence[Case] = ()
) -> Fingerprint:
    """The fingerprint of a study's training cases, of which up to 300 (volumes: 40) are looked at, evenly spread."""
    most = _CASES["picture" if predictor.spec.preprocess.volume is None else "volume"]
    alone = Predictor(  # features are those of the first view
        predictor.model, predictor.spec, device=predictor.device, precision=predictor.precision, views="identity"
    )
    return fingerprint(
        [facts_of(alone, case, root) for case in _some(cases, most)],
        held_out=[facts_of(alone, case, root) for case in _some(held_out, most)],
    )


def facts_of(predictor: Predictor, case: Case, root: Path) -> Facts:
    """The facts of a case of a study, features included."""
    preprocess = predictor.spec.preprocess
    pixels, volume = preprocess.read(inside(root, case.image))
    grid = preprocess.volume.place(volume) if preprocess.volume is not None and volume is not None else None
    labels = {name: case.meta.get(name, "") for name in _LABELS}
    facts = look(pixels, volume=volume, grid=grid, preprocess=preprocess, **labels)
    with pooled(predictor) as calls:
        predictor.decode(preprocess.apply(pixels)[None])
    features = features_of(calls, 1, len(predictor.views))
    return Facts(**{**vars(facts), "features": features[0] if features else None})


def _some(cases: Sequence[Case], most: int) -> list[Case]:
    return [cases[i * len(cases) // most] for i in range(most)] if len(cases) > most else list(cases)


def write_fingerprint(folder: Path, known: Fingerprint) -> dict[str, str]:
    """Write ``fingerprint.json`` into a bundle's folder; returns what its provenance must hold."""
    text = json.dumps({"format": FORMAT, **vars(known)}, indent=1, allow_nan=False) + "\n"
    write_atomic(folder / FILE, text)
    return {KEY: hashlib.sha256(text.encode()).hexdigest()}


def read_fingerprint(folder: Path, provenance: Mapping[str, Any]) -> Fingerprint | None:
    """The fingerprint of a bundle; None of one that was made without. Refused if it is not the one that was written."""
    expected, path = provenance.get(KEY), folder / FILE
    if expected is None:
        return None
    content = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(content).hexdigest() != expected:
        raise SafetyRefusal(
            "E-BUN-HASH",
            f"{FILE} is missing or not the one that was written with the bundle",
            "copy the bundle again",
            where=str(folder),
        )
    tree = json.loads(content)
    if tree.pop("format", None) != FORMAT:
        raise UserError("E-BUN-FORMAT", f"{FILE} is of another format", "use the version that wrote it", where=FILE)
    ranges = {name: (float(low), float(high)) for name, (low, high) in tree.pop("ranges").items()}
    labels = {name: tuple(values) for name, values in tree.pop("labels").items()}
    return Fingerprint(
        ranges=ranges,
        labels=labels,
        mean=tuple(tree.pop("mean")),
        variance=tuple(tree.pop("variance")),
        **tree,
    )
