"""Whether an exported file answers as :class:`medmtl.predictor.Predictor` does."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from medmtl.bundle import ModelSpec
from medmtl.errors import UserError
from medmtl.export.formats import Runner
from medmtl.export.network import Choice, Portable
from medmtl.io.discover import discover
from medmtl.models.sliding import slide
from medmtl.predictor import Predictor
from medmtl.tasks.regression import Regression

TOLERANCE = 1e-4  # of a probability, and of a value's range: float32 and another order of sums, far below a decision
Answers = Mapping[str, Tensor]


@dataclass(frozen=True)
class Sample:
    """An input that both sides answer. ``name`` is for errors and tables and holds no file name."""

    name: str
    image: Tensor  # [B, C, *S], preprocessed
    covariates: Tensor | None = None  # [B, P]


def made_samples(spec: ModelSpec, network: Portable, choice: Choice) -> list[Sample]:
    """The bundle's example input, and three drawn cases: another batch than was traced, and no constant image.

    Covariates are drawn too, where the file takes them.
    """
    rng = torch.Generator().manual_seed(0)
    channels, columns = spec.preprocess.channels, len(network.columns)
    unit = torch.rand(3, channels, *choice.size, generator=rng)
    drawn = torch.stack([spec.preprocess.normalise.apply(image) for image in unit])
    known = torch.randn(3, columns, generator=rng) if columns else None
    return [Sample("example", torch.zeros(1, channels, *choice.size)), Sample("drawn", drawn, known)]


def given_samples(spec: ModelSpec, paths: Sequence[Path], choice: Choice) -> list[Sample]:
    """Image files, preprocessed as for inference, one sample each; refused in another size than the file's."""
    samples = []
    for number, path in enumerate(paths, start=1):
        image = spec.preprocess.apply(spec.preprocess.read(path)[0])
        if spec.preprocess.patches is None and tuple(image.shape[1:]) != choice.size:
            raise UserError(
                "E-EXP-IMAGE",
                f"the preprocessed image is {list(image.shape[1:])}, the exported network sees {list(choice.size)}",
                "give images of that size, or another --size",
                where=path.name,
            )
        samples.append(Sample(f"image {number}", image[None]))
    return samples


def image_files(given: Sequence[Path]) -> tuple[Path, ...]:
    """Files as given; of a folder, its PNG, JPEG and TIFF images of one page."""
    files: list[Path] = []
    for path in given:
        found = discover(path).images if path.is_dir() else ()
        files += [path / item.path for item in found if item.pages == 1] if path.is_dir() else [path]
        if path.is_dir() and not found:
            raise UserError("E-EXP-IMAGE", "no image in the folder", "give a folder of images", where=str(path))
    return tuple(files)


def answered(runner: Runner, network: Portable, spec: ModelSpec) -> Callable[[Sample], dict[str, Tensor]]:
    """A file's answers to a sample; where the specification has patches, the file answers windows that slide."""
    patches = spec.preprocess.patches

    def whole(image: Tensor, covariates: Tensor | None) -> dict[str, Tensor]:
        with torch.inference_mode():
            return runner(network.inputs(image, covariates))

    def answer(sample: Sample) -> dict[str, Tensor]:
        known = sample.covariates
        if patches is None:
            return whole(sample.image, known)

        def window(windows: Tensor, row: int) -> dict[str, Tensor]:
            return whole(windows, None if known is None else known[row].expand(len(windows), -1))

        return slide(sample.image, window, size=patches.size, overlap=patches.overlap, together=patches.windows)

    return answer


def compare(
    answer: Callable[[Sample], Answers],
    predictor: Predictor,
    samples: Sequence[Sample],
    tasks: Sequence[str],
    *,
    file: str,
) -> dict[str, float]:
    """The largest difference for each task, over its tolerance's unit; refused (E-EXP-PARITY) above the tolerance.

    The unit is 1 for probabilities and ``high - low`` for values. An answer that is not finite is refused as well: it
    could not be told from a network that was exported broken.
    """
    worst = dict.fromkeys(tasks, 0.0)
    for sample in samples:
        expected, found = predictor.decode(sample.image, sample.covariates), answer(sample)
        for name in tasks:
            distance = difference(predictor.spec, name, expected[name], found.get(name))
            if not distance <= TOLERANCE:
                raise UserError(
                    "E-EXP-PARITY",
                    f"task {name}, {sample.name}: the file's answer is {distance:.3g} away from the bundle's, "
                    f"{TOLERANCE:g} is allowed",
                    "nothing was kept; choose another format, and report the encoder and the versions of torch",
                    where=file,
                )
            worst[name] = max(worst[name], distance)
    return worst


def difference(spec: ModelSpec, name: str, expected: Tensor, found: Tensor | None) -> float:
    """Largest absolute difference by the tolerance's unit; infinite for no answer, another shape, or no number."""
    if found is None or found.shape != expected.shape:
        return float("inf")
    task = spec.tasks[name]
    unit = task.high - task.low if isinstance(task, Regression) else 1.0
    distance = float((found.float() - expected).abs().max()) / unit
    return distance if distance == distance else float("inf")
