"""The network on a batch: one bundle, or several as one model; a batch that does not go through is halved."""

import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from medmtl.bundle import Bundle, ModelSpec
from medmtl.errors import EnvironmentFailure, UserError
from medmtl.fingerprint.cases import features_of, pooled
from medmtl.models.views import ViewSet
from medmtl.predictor import Predictor
from medmtl.tasks.classification import Classification
from medmtl.tasks.domain import Domain

_MAX_VALUES = 2**26  # numbers in one input tensor (256 MiB); images too large for that go through in smaller batches


@dataclass(frozen=True)
class Decoded:
    """What the network says of one image."""

    outputs: Mapping[str, Tensor]  # by task: probabilities [K, ...] or a value
    spread: Mapping[str, float] = field(default_factory=dict)  # by task: how far the bundles are apart
    features: tuple[float, ...] | None = None  # pooled, of the first bundle's encoder


@dataclass
class Model:
    """One bundle or several, whose decoded outputs are averaged: ``mean_m f_m(x)``, thresholds too.

    ``spread`` is the standard deviation over the bundles: of a value; of the probability that differs most among the
    classes; of a map, the mean of that over the pixels.
    """

    members: tuple[Predictor, ...]
    ids: tuple[str, ...]
    spec: ModelSpec
    say: Callable[[str], None] = lambda text: None
    features: bool = False  # the first bundle's fingerprint compares the encoder's features (format 1)
    unsealed: tuple[str, ...] = ()  # ids of bundles whose specification has no digest
    gain: tuple[str, float, float] | None = None  # of the views, on validation: metric, with one view, with all
    seconds: Counter[str] = field(default_factory=Counter)  # by bundle
    images: int = 0  # that went through
    halved: int = 0  # batches that did not go through as a whole
    most: dict[tuple[int, ...], int] = field(default_factory=dict)  # images of a shape that the memory holds at once

    @classmethod
    def of(
        cls,
        bundles: Sequence[Bundle],
        *,
        device: torch.device,
        views: ViewSet | None,
        say: Callable[[str], None] = lambda text: None,
        features: bool = False,
    ) -> "Model":
        """The model of bundles that agree in preprocessing and tasks and are all different (``E-PRE-ENSEMBLE``)."""
        first = bundles[0]
        for number, other in enumerate(bundles[1:], start=1):
            if other.id in [bundle.id for bundle in bundles[:number]]:
                raise UserError(
                    "E-PRE-ENSEMBLE",
                    f"the bundle {other.id} is given twice, so its spread would say nothing",
                    "give each bundle once",
                    where=str(other.folder),
                )
            if different := _differences(first.spec, other.spec):
                raise UserError(
                    "E-PRE-ENSEMBLE",
                    f"the bundles {first.id} and {other.id} differ in {', '.join(different)}",
                    "combine folds or seeds of one study",
                    where=str(other.folder),
                )
        members = tuple(Predictor.of(bundle, device=device, views=views or first.spec.views) for bundle in bundles)
        ids, spec = tuple(bundle.id for bundle in bundles), _averaged([bundle.spec for bundle in bundles])
        gain = _gain(first) if views in (None, first.spec.views) else None
        unsealed = tuple(bundle.id for bundle in bundles if not bundle.sealed)
        return cls(members, ids, spec, say, features, unsealed, gain)

    def decode(self, images: Mapping[str, Tensor]) -> dict[str, Decoded | UserError]:
        """What is decoded (or what went wrong) by image; images of one shape go through together, in order."""
        by_shape: dict[tuple[int, ...], list[str]] = defaultdict(list)
        for key, image in images.items():
            by_shape[tuple(image.shape)].append(key)
        decoded: dict[str, Decoded | UserError] = {}
        for shape, keys in by_shape.items():
            most = 1 if self.spec.preprocess.patches is not None else max(1, _MAX_VALUES // math.prod(shape))
            at = 0
            while at < len(keys):
                together = self.most.get(shape, most)  # of patches, an image at a time: its windows are a batch
                part = keys[at : at + together]
                decoded.update(zip(part, self._decode([images[key] for key in part]), strict=True))
                at += len(part)
        return decoded

    def _decode(self, images: Sequence[Tensor]) -> "list[Decoded | UserError]":
        """One result per image. If a batch does not go through, its halves are tried, so that one image fails alone."""
        try:
            return list(self._together(torch.stack(list(images))))
        except torch.AcceleratorError as error:
            raise EnvironmentFailure(
                "E-DEV-FAILED",
                f"the device failed: {_first_line(error)}",
                "run again, or with device cpu",
                where=str(self.members[0].device),
            ) from error
        except (RuntimeError, ValueError, MemoryError) as error:
            if len(images) == 1:
                return [_refused(error, images[0])]
            half = len(images) // 2
            self.halved += 1
            if _is_memory(error):
                self.most[tuple(images[0].shape)] = half
                self.say(f"the memory does not hold {len(images)} images at once, going on with {half}")
                if self.members[0].device.type == "cuda":
                    torch.cuda.empty_cache()
        return self._decode(images[:half]) + self._decode(images[half:])

    def _together(self, batch: Tensor) -> list[Decoded]:
        sums: dict[str, Tensor] = {}
        squares: dict[str, Tensor] = {}
        features = None
        for number, (name, member) in enumerate(zip(self.ids, self.members, strict=True)):
            began = time.perf_counter()
            if number or not self.features:
                outputs = member.decode(batch)
            else:
                with pooled(member) as calls:
                    outputs = member.decode(batch)
                features = features_of(calls, len(batch), len(member.views))
            self.seconds.update({f"{number + 1} {name}": time.perf_counter() - began})  # type: ignore[dict-item]
            if len(self.members) == 1:
                sums = outputs
                break
            for task, value in outputs.items():
                wide = value.double()  # a small spread is a small difference of large sums
                sums[task] = sums[task] + wide if task in sums else wide
                squares[task] = squares[task] + wide**2 if task in squares else wide**2
        count = len(self.members)
        means = {task: value / count for task, value in sums.items()} if count > 1 else sums
        deviations = {task: (square / count - means[task] ** 2).clamp_min(0).sqrt() for task, square in squares.items()}
        means = {task: value.float() for task, value in means.items()}
        self.images += len(batch)
        rows = {task: value.unbind() for task, value in means.items()}
        return [
            Decoded(
                {task: values[i] for task, values in rows.items()},
                {task: _summary(value[i]) for task, value in deviations.items()},
                features[i] if features is not None else None,
            )
            for i in range(len(batch))
        ]

    def cost(self) -> dict[str, float]:
        """Seconds per image of each bundle, by its place and id."""
        return {name: round(seconds / max(self.images, 1), 6) for name, seconds in self.seconds.items()}

    @property
    def views(self) -> int:
        """How many views of an image each bundle averages over."""
        return len(self.members[0].views)

    def view_cost(self) -> dict[str, float]:
        """Seconds per image and view, as :meth:`cost`: the mean of the views, which all do the same work."""
        return {name: round(seconds / self.views, 6) for name, seconds in self.cost().items()}


def _gain(bundle: Bundle) -> tuple[str, float, float] | None:
    """What training measured of the bundle's own views; None where it did not."""
    selected = bundle.provenance.get("selected")
    if not isinstance(selected, dict):
        return None
    one, every = selected.get("value"), selected.get("value_with_views")
    return (str(selected.get("monitor")), one, every) if isinstance(one, float) and isinstance(every, float) else None


def _summary(deviation: Tensor) -> float:
    return float(deviation) if deviation.ndim == 0 else float(deviation.amax(0).mean())


def _differences(a: ModelSpec, b: ModelSpec) -> list[str]:
    """In what two specifications differ that must be equal for their outputs to be averaged."""
    found = [] if a.preprocess == b.preprocess else ["preprocessing"]

    def answers(spec: ModelSpec) -> dict[str, object]:
        kept = {name: task for name, task in spec.tasks.items() if not isinstance(task, Domain)}
        return {
            name: (
                task.kind,
                getattr(task, "classes", None),
                getattr(task, "levels", None),
                getattr(task, "unit", None),
            )
            for name, task in kept.items()
        }

    return found if answers(a) == answers(b) else [*found, "tasks"]


def _averaged(specs: Sequence[ModelSpec]) -> ModelSpec:
    """The first specification with thresholds that are means over all of them."""
    tasks = dict(specs[0].tasks)
    for name, task in tasks.items():
        if isinstance(task, Classification):
            found = [getattr(spec.tasks[name], "threshold", None) for spec in specs]
            if any(value is not None for value in found):
                mean = sum(0.5 if value is None else value for value in found) / len(found)
                tasks[name] = task.model_copy(update={"threshold": mean})
    return specs[0].model_copy(update={"tasks": tasks})


def _is_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "not enough memory" in str(error)


def _refused(error: Exception, image: Tensor) -> UserError:
    size = " x ".join(str(n) for n in image.shape[1:])
    if _is_memory(error):
        return UserError(
            "E-PRE-MEMORY", f"the memory does not suffice for {size} px", "cut the image into tiles, or use device cpu"
        )
    return UserError(
        "E-PRE-MODEL", f"the network cannot process {size} px ({_first_line(error)})", "crop or resize the image"
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
