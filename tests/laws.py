"""Laws, and the small shared inputs that they are tried on. A test file says only who obeys which law.

B samples, K classes, T tasks, P shared parameters, as everywhere.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import TypeAdapter
from torch import Tensor, nn

from medmtl.balance import AnyBalancer, FixedConfig, GramianConfig
from medmtl.balance.static import Balancer
from medmtl.config import validate
from medmtl.data.batch import Batch
from medmtl.data.case import Case, Manifest, read_manifest, write_manifest
from medmtl.data.target import ABSENT
from medmtl.engine.objective import Objective
from medmtl.errors import UserError
from medmtl.models.multitask import MultiTaskModel
from medmtl.tasks.annotators import Annotators
from medmtl.tasks.base import Task
from medmtl.tasks.classification import Classification
from medmtl.tasks.domain import Domain, DomainAdversary
from medmtl.tasks.ordinal import Ordinal
from medmtl.tasks.regression import Regression
from medmtl.tasks.segmentation import Segmentation

# ------------------------------------------------------------------------------------------------------------- inputs


class TinyEncoder(nn.Module):
    """Two convolutions with GroupNorm: strides 2 and 4, 4 and 8 channels."""

    channels, strides = (4, 8), ((2, 2), (4, 4))

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1, bias=False), nn.GroupNorm(2, 4), nn.Tanh())
        self.second = nn.Sequential(nn.Conv2d(4, 8, 3, 2, 1, bias=False), nn.GroupNorm(2, 8), nn.Tanh())

    def forward(self, image: Tensor) -> list[Tensor]:
        first = self.first(image)
        return [first, self.second(first)]


DOMAINS = ("north", "south")
SMOOTH = {"kind": "cross_entropy", "label_smoothing": 0.1}
ADVERSARY = {"strength": {"value": 0.3, "schedule": "constant"}}
TASKS: dict[str, Task] = {
    "binary": Classification(classes=("no", "yes")),
    "graded": Classification(classes=("a", "b", "c"), class_weights=(0.5, 1.0, 1.5)),
    "focal": validate(Classification, {"classes": ["a", "b", "c"], "criterion": {"kind": "focal"}}, where="laws"),
    "smooth": validate(Classification, {"classes": ["a", "b"], "criterion": SMOOTH}, where="laws"),
    "score": Ordinal(low=2, high=6),
    "stage": Ordinal(classes=("none", "mild", "severe"), importance=(0.5, 1.5)),
    "mse": Regression(low=0, high=10, centre=4.0, scale=2.0),
    "l1": Regression(low=0, high=10, criterion="l1", centre=4.0, scale=2.0),
    "huber": Regression(low=0, high=10, criterion="huber", centre=4.0, scale=2.0),
    "mask": Segmentation(classes=("background", "nucleus")),
    "organs": Segmentation(classes=("background", "liver", "spleen"), class_weights=(0.5, 1.0, 1.5)),
    "domain": Domain(classes=DOMAINS),
    "adversary": validate(DomainAdversary, {"classes": DOMAINS, **ADVERSARY}, where="laws"),
}
MIXED = {  # a study in small: two main tasks that label different samples, one dense, one adversary
    "grade": Classification(classes=("a", "b", "c")),
    "size": Regression(low=0, high=10, centre=4.0, scale=2.0),
    "mask": Segmentation(classes=("background", "nucleus"), weight=0.5),
    "site": TASKS["adversary"],
}
WEIGHED = {name: task.model_copy(update={"weigh": f"sure_of_{name}"}) for name, task in MIXED.items()}
SCORE = {  # a score in small: items of two kinds, their total, and the score later on
    "q1": Ordinal(low=0, high=5),
    "q2": Regression(low=0, high=10, centre=4.0, scale=2.0),
    "q3": Regression(low=0, high=5, centre=1.0, scale=1.0, criterion="l1"),
    "total": Regression(low=0, high=20, centre=7.0, scale=4.0, sum_of=("q1", "q2", "q3")),
    "later": Regression(low=0, high=20, centre=9.0, scale=5.0),
}
BALANCERS = ("fixed", "uncertainty", "dwa", "upgrad", "pcgrad", "mgda", "aligned_mtl", "cagrad")


def targets_of(task: Task, samples: int, seed: int = 0, size: int = 8) -> Tensor:
    """Random valid targets, [B], [B, H, W], or [B, P, H, W] of annotators; every class occurs."""
    source = torch.Generator().manual_seed(seed)
    if isinstance(task, Regression):
        return task.low + (task.high - task.low) * torch.rand(samples, generator=source)
    shape = (samples, size, size) if isinstance(task, Segmentation) else (samples,)
    K = len(task.levels if isinstance(task, Ordinal) else task.classes)
    target = torch.randint(K, shape, generator=source)
    target.flatten()[:K] = torch.arange(K)
    return drawn(task, target) if isinstance(task, Annotators) else target


def drawn(task: Annotators, label: Tensor) -> Tensor:
    """The masks [B, P, H, W] of annotators who are always right; of R + 1 images one lacks each, and one has all."""
    R = len(task.annotators)
    planes = label[:, None].repeat(1, R + task.reader().staple, *[1] * (label.ndim - 1))
    for i, sample in enumerate(planes):
        if R > 1 and i % (R + 1) < R:
            sample[i % (R + 1)] = ABSENT
    return planes


def chance(task: Task, target: Tensor) -> Tensor:
    """The output of a predictor that knows nothing: equal logits, the centre, or the log-odds of the shares."""
    if isinstance(task, Ordinal):
        shares = torch.tensor(task.prior or [1 / len(task.levels)] * len(task.levels))
        return torch.logit(1 - shares.cumsum(0)[:-1]).repeat(len(target), 1)
    if isinstance(task, Regression):
        return torch.zeros(len(target), 1)
    if isinstance(task, Annotators):
        R, K = len(task.annotators), len(task.classes)
        return torch.zeros(len(target), K + (R * K * K if task.training == "confusion" else 0), *target.shape[2:])
    return torch.zeros(len(target), len(task.classes), *target.shape[1:])


def truth(task: Task, target: Tensor, sharpness: float = 6.0) -> Tensor:
    """The output of a predictor that is right."""
    if isinstance(task, Regression):
        return ((target - task.centre) / task.scale)[:, None]
    if isinstance(task, Ordinal):
        return sharpness * torch.where(target[:, None] > torch.arange(len(task.levels) - 1), 1.0, -1.0)
    if isinstance(task, Annotators):  # the label that all agree on; and that each annotator says what is there
        output, K = chance(task, target), len(task.classes)
        output[:, :K] = sharpness * F.one_hot(target.amax(1), K).movedim(-1, 1).float()
        matrices = torch.eye(K).flatten().repeat(len(task.annotators))[: output.shape[1] - K]
        output[:, K:] = sharpness * matrices[:, None, None]
        return output
    return sharpness * F.one_hot(target, len(task.classes)).movedim(-1, 1).float()


def opposite(task: Task, right: Tensor) -> Tensor:
    """The output of a predictor that is wrong; it knows annotators, with whom it would be right twice over."""
    if isinstance(task, Regression):
        return right + 3
    if isinstance(task, Annotators):
        return torch.cat([-right[:, : len(task.classes)], right[:, len(task.classes) :]], 1)
    return -right


def batch(tasks: Mapping[str, Task] = MIXED, samples: int = 8, seed: int = 0, **labelled: list[int]) -> Batch:
    """Random images 8 x 8; ``labelled`` names which samples a target has, all where it is not given.

    Where tasks weigh their cases, no two cases weigh the same, and all together less than 1.
    """
    source = torch.Generator().manual_seed(seed)
    columns = {task.target or name: task for name, task in tasks.items()}
    targets = {name: targets_of(task, samples, seed + i) for i, (name, task) in enumerate(columns.items())}
    masks = {name: torch.zeros(samples, dtype=torch.bool) for name in columns}
    for name, mask in masks.items():
        mask[labelled.get(name, list(range(samples)))] = True
    domain = targets.get("domain", torch.zeros(samples, dtype=torch.int64))
    image = torch.randn(samples, 3, 8, 8, generator=source)
    heavy = torch.rand(samples, generator=source, dtype=torch.float64) / samples
    weights = {task.weigh: heavy.roll(i) for i, task in enumerate(tasks.values()) if task.weigh is not None}
    return Batch(image, targets, masks, domain, tuple(f"case{i}" for i in range(samples)), weights)


def balancer(kind: str, tasks: int) -> Balancer:
    """Any balancer by its kind, with its defaults."""
    return TypeAdapter(AnyBalancer).validate_python({"kind": kind}).build(tasks)


def informed(batch: Batch, covariates: int = 3, strata: int = 2, seed: int = 3) -> Batch:
    """The same batch with random covariates [B, P] and strata, of which -1 is one."""
    source = torch.Generator().manual_seed(seed)
    samples = len(batch.case_ids)
    known = torch.randn(samples, covariates, generator=source)
    return replace(batch, covariates=known, stratum=torch.arange(samples) % (strata + 1) - 1)


def objective(
    tasks: Mapping[str, Task] = MIXED, balancer: Balancer | None = None, seed: int = 0, **beside: Any
) -> Objective:
    """A tiny model with heads for ``tasks``, in training mode, always the same parameters."""
    torch.manual_seed(seed)
    encoder = TinyEncoder()
    model = MultiTaskModel(encoder, {name: task.head(encoder) for name, task in tasks.items()})
    main = sum(not task.auxiliary for task in tasks.values())
    return Objective(model, tasks, balancer or FixedConfig().build(main), **beside).train()


def gradients(objective: Objective, batch: Batch, observe: bool = False) -> tuple[Tensor, dict[str, Tensor | None]]:
    """(scalar, {parameter: its gradient}) of one backward pass, from a fixed random state."""
    objective.zero_grad(set_to_none=True)
    torch.manual_seed(1)
    losses = objective(batch, observe=observe)
    losses.scalar.backward()
    found = {name: None if p.grad is None else p.grad.clone() for name, p in objective.named_parameters()}
    return losses.scalar.detach(), found


def chosen(batch: Batch, samples: list[int]) -> Batch:
    """The batch of these samples, in this order; one may come twice."""

    def some(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor[samples] for name, tensor in tensors.items()}

    ids = tuple(batch.case_ids[i] for i in samples)
    parts = some(batch.targets), some(batch.labelled), batch.domain[samples], ids, some(batch.weights)
    extra = (None if tensor is None else tensor[samples] for tensor in (batch.covariates, batch.stratum))
    return Batch(batch.image[samples], *parts, *extra)


def write_png(path, seed: int, *, size: int = 12, channels: int = 3, bits: int = 8):
    """A random image file; returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    shape = (size, size, 3) if channels == 3 else (size, size)
    pixels = rng.integers(0, 2**bits, shape).astype(np.uint8 if bits == 8 else np.uint16)
    Image.fromarray(pixels).save(path)
    return path


def cases(groups: int = 12, each: int = 2, domains: int = 3, split: str = "") -> list[Case]:
    """Cases of a study: ``each`` per group, groups dealt to domains, two classes; one in five without a label."""
    found = []
    for i in range(groups * each):
        group = i // each
        targets = {} if i % 5 == 4 else {"grade": "ab"[group % 2 if i % 3 else 0]}
        found.append(
            Case(f"c{i:03d}", f"g{group:02d}", f"images/c{i:03d}.png", f"d{group % domains}", split, targets, {}, i + 2)
        )
    return found


def manifest(root, found: list[Case]) -> Manifest:
    """A manifest in memory; its images need not exist."""
    return Manifest(root, tuple(found), "0" * 64, ("grade",))


def written(root, found: list[Case], **image) -> Manifest:
    """The same as files: random images and ``manifest.csv``."""
    for i, case in enumerate(found):
        write_png(root / case.image, i, **image)
    return read_manifest(write_manifest(root / "manifest.csv", found))


# --------------------------------------------------------------------------------------------------------------- laws


def costs_about_one_at_chance(task: Task, target: Tensor, low: float, high: float) -> None:
    """The mean loss of a predictor that knows nothing lies in [low, high], around 1."""
    assert low <= float(task.loss(chance(task, target), target).mean()) <= high


def falls_towards_the_truth(task: Task, target: Tensor) -> None:
    """Each step from chance, and from a wrong output, towards the truth lowers every sample's loss."""
    right = truth(task, target)
    for start in (chance(task, target), opposite(task, right)):
        steps = [task.loss(start + share * (right - start), target) for share in torch.linspace(0, 1, 9)]
        assert all((after < before).all() for before, after in pairwise(steps))


def is_per_sample(task: Task, target: Tensor) -> None:
    """[B] losses, each of its own sample alone: permuting samples permutes losses."""
    output = chance(task, target) + torch.linspace(-1, 1, chance(task, target).numel()).view(chance(task, target).shape)
    loss = task.loss(output, target)
    assert loss.shape == (len(target),) and torch.isfinite(loss).all()
    order = torch.arange(len(target) - 1, -1, -1)
    torch.testing.assert_close(task.loss(output[order], target[order]), loss[order])
    alone = torch.cat([task.loss(output[i : i + 1], target[i : i + 1]) for i in range(len(target))])
    torch.testing.assert_close(alone, loss)


def decodes_within_range(task: Task, target: Tensor) -> None:
    """Decoded outputs are probabilities or within [low, high], and so is the mean of two of them."""
    torch.manual_seed(0)
    outputs = [chance(task, target) + 20 * torch.randn(chance(task, target).shape) for _ in range(2)]
    if isinstance(task, Ordinal):  # its head's thresholds are in order
        outputs = [output.sort(1, descending=True).values for output in outputs]
    decoded = [task.decode(output) for output in outputs]
    for value in (*decoded, sum(decoded) / 2):
        if isinstance(task, Regression):
            assert value.shape == (len(target),) and ((value >= task.low) & (value <= task.high)).all()
        else:
            K = len(task.levels if isinstance(task, Ordinal) else task.classes)
            spatial = target.shape[2:] if isinstance(task, Annotators) else target.shape[1:]
            assert value.shape == (len(target), K, *spatial) and (value >= 0).all()
            torch.testing.assert_close(value.sum(1), torch.ones_like(value.sum(1)))


def table(task: Task, output: Tensor, target: Tensor) -> pd.DataFrame:
    """The case table of outputs."""
    decoded = task.decode(output)
    rows = [{"case_id": f"c{i}", "task": "t", **task.row(decoded[i], target[i])} for i in range(len(target))]
    return pd.DataFrame(rows)


def refuses(code: str, action: Callable[[], object], *, kind: type[Exception] | None = None, says: str = "") -> str:
    """The action raises a UserError of this code (and kind) whose message holds ``says``; returns the message."""
    with pytest.raises(UserError) as caught:
        action()
    error = caught.value
    assert error.code == code, str(error)
    assert kind is None or type(error) is kind, type(error)
    assert says in str(error), str(error)
    assert error.what and error.remedy
    return str(error)


def ignores_the_unit_of_weights(tasks: Mapping[str, Task], batch: Batch) -> None:
    """Every weight times a constant changes neither loss nor gradient: not a bit where the factor is a power of 2."""
    plain = gradients(objective(tasks), batch)
    for factor in (2.0**-40, 2.0**30, 3.7):
        scaled = {column: weights * factor for column, weights in batch.weights.items()}
        loss, found = gradients(objective(tasks), replace(batch, weights=scaled))
        tolerance = 1e-6 if factor == 3.7 else 0
        torch.testing.assert_close(loss, plain[0], atol=tolerance, rtol=tolerance)
        for name, gradient in found.items():
            torch.testing.assert_close(gradient, plain[1][name], atol=tolerance, rtol=tolerance)


def counts_a_weight_of_two_as_the_sample_twice(tasks: Mapping[str, Task], batch: Batch) -> None:
    """Weights 2 and 1 are a batch in which the samples of weight 2 come twice and none has a weight."""
    doubled = [i for i in range(len(batch.case_ids)) if i % 3 == 0]
    twos = torch.ones(len(batch.case_ids), dtype=torch.float64).index_fill(0, torch.tensor(doubled), 2.0)
    repeated = chosen(batch, [*range(len(batch.case_ids)), *doubled])
    unweighed = {name: task.model_copy(update={"weigh": None}) for name, task in tasks.items()}
    weighed = gradients(objective(tasks), replace(batch, weights=dict.fromkeys(batch.weights, twos)))
    twice, once = (gradients(objective(unweighed), one) for one in (repeated, batch))
    torch.testing.assert_close(weighed[0], twice[0])
    for name, gradient in weighed[1].items():
        torch.testing.assert_close(gradient, twice[1][name], atol=1e-6, rtol=1e-4)
    assert not torch.isclose(weighed[0], once[0], rtol=1e-3), "the weights do nothing"


# Balancers: G [T, T] -> weights [T]


def gramians(tasks: int = 3, count: int = 6) -> list[tuple[Tensor, Tensor]]:
    """(J [T, P], G) with and without conflict, of different lengths."""
    source = torch.Generator().manual_seed(5)
    found = []
    for i in range(count):
        J = torch.randn(tasks, 6, generator=source, dtype=torch.float64)
        J[0] *= 1 + 3 * (i % 3)
        J[1] -= (i % 2) * J[0]
        found.append((J, J @ J.T))
    return found


Weigh = Callable[[Tensor], Tensor]


def does_not_conflict(weigh: Weigh, tolerance: float = 1e-3) -> None:
    """The combined direction lowers no task's fit to first order: G w >= 0, up to the regularisation."""
    for _, G in gramians():
        assert (G @ weigh(G) >= -tolerance * G.diagonal().mean()).all()


def is_equivariant(weigh: Weigh, tolerance: float = 1e-5) -> None:
    """Permuting the tasks permutes the weights."""
    order = torch.tensor([2, 0, 1])
    for _, G in gramians():
        torch.testing.assert_close(weigh(G[order][:, order]), weigh(G)[order], atol=tolerance, rtol=tolerance)


def ignores_the_unit(weigh: Weigh, tolerance: float = 1e-4) -> None:
    """Gradients in another unit, very long or very short, get the same weights."""
    for _, G in gramians():
        for factor in (1e-12, 1e8):
            torch.testing.assert_close(weigh(G * factor), weigh(G), atol=tolerance, rtol=tolerance)


def reduces_to_the_sum(weigh: Weigh, tolerance: float = 1e-3) -> None:
    """Equal gradients, which do not conflict, are combined to their plain sum."""
    G = torch.ones(3, 3, dtype=torch.float64)
    torch.testing.assert_close(
        (G @ weigh(G))[0], torch.tensor(3.0, dtype=torch.float64), atol=tolerance, rtol=tolerance
    )


def weights_of(kind: str) -> Weigh:
    """The weights with which a balancer of this kind combines losses whose gradients have the Gramian G."""
    built = GramianConfig(kind=kind).build(3)

    def weigh(G: Tensor) -> Tensor:
        values, vectors = torch.linalg.eigh(G)
        J = vectors * values.clamp(min=0).sqrt()  # G = J J^T
        shared = nn.Parameter(torch.zeros(J.shape[1], dtype=G.dtype))
        probe = torch.zeros(len(G), dtype=G.dtype, requires_grad=True)
        torch.manual_seed(0)
        built(J @ shared + probe, [shared], torch.ones(len(G), dtype=torch.bool)).backward()
        return probe.grad

    return weigh
