"""Cases -> samples -> batches: read, preprocess (cached in memory), augment by counted randomness, collate."""

import math
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from medmtl.config import Config
from medmtl.data.augment import Augment
from medmtl.data.batch import Batch, Sample, collate
from medmtl.data.case import Case
from medmtl.data.covariates import Covariates
from medmtl.data.patches import Places, marks
from medmtl.data.preprocess import IMAGE, Preprocess
from medmtl.data.sampler import Draw, EpochOrder
from medmtl.data.target import AnnotatorsTarget, MaskTarget, Target
from medmtl.errors import UserError
from medmtl.files import inside
from medmtl.io.masks import check_mask
from medmtl.io.nifti import read_nifti
from medmtl.seeds import counted, generator


class LoaderConfig(Config):
    """How batches are made. ``batch_size`` counts the samples of all processes together."""

    batch_size: int = Field(32, ge=2)
    workers: int = Field(2, ge=0)  # loading processes per training process
    cache: Literal["none", "memory"] = "memory"  # keep decoded, preprocessed images in memory (8 bits a channel)
    cache_gib: float = Field(8.0, gt=0)  # of the training images, and as much of others; what is beyond is read again
    evaluation_batch_size: int = Field(64, ge=1)


Kept = tuple[dict[str, Tensor], dict[str, Tensor], dict[str, bool]]


@dataclass
class CaseDataset(Dataset):  # type: ignore[type-arg]
    """Random access to a study's samples; ``augment`` None for validation, test and inference.

    A case that cannot be read raises a :class:`UserError` naming it; nothing is skipped in silence.
    """

    cases: Sequence[Case]
    root: Path
    targets: Mapping[str, Target]  # target column -> how to read it
    domains: tuple[str, ...]  # the training domains; another domain is -1
    preprocess: Preprocess
    augment: Augment | None = None
    seed: int = 0
    cache: Literal["none", "memory"] = "memory"
    weigh: tuple[str, ...] = ()  # the meta columns by which tasks weigh the cases
    covariates: Covariates | None = None
    strata: tuple[str, tuple[str, ...]] | None = None  # a meta column, and its values whose items weigh otherwise
    cache_gib: float = 8.0
    _kept: dict[int, Kept] = field(default_factory=dict, repr=False)
    _held: int = 0  # bytes in _kept
    _marks: dict[int, list[Places]] = field(default_factory=dict, repr=False)  # where patches may be centred

    def __post_init__(self) -> None:
        window = self.preprocess.input_size
        self._reach = None if window is None else self.augment.reach(window) if self.augment else window
        self._pipeline = self.augment.build(window) if self.augment else None

    def __len__(self) -> int:
        return len(self.cases)

    def read(self, index: int) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, bool]]:
        """(image and dense targets before windowing, scalar targets, labelled), from memory if it was read before."""
        kept, scalars, labelled = self._read_or_kept(index)
        return self._whole(kept), scalars, labelled

    def _read_or_kept(self, index: int) -> Kept:
        """As :meth:`read`, the tensors as they are kept (:func:`_compact`, :func:`_small`)."""
        if index in self._kept:
            return self._kept[index]
        case = self.cases[index]
        try:
            arrays, scalars, labelled = self._read(case)
        except UserError as error:
            raise type(error)(
                error.code,
                error.what,
                error.remedy,
                where=_named(case, error.where),
            ) from error
        if self.cache == "memory":
            kept = {name: _compact(t) if name == IMAGE else _small(t) for name, t in arrays.items()}
            size = sum(tensor.nbytes for tensor in kept.values())
            if self._held + size <= self.cache_gib * 2**30:  # the first ones stay: every epoch sees all, in any order
                self._kept[index] = (kept, scalars, labelled)
                self._held += size
        return arrays, scalars, labelled

    def _whole(self, kept: dict[str, Tensor]) -> dict[str, Tensor]:
        """Tensors as they were before they were kept."""
        return {
            name: (tensor.float() / 255 if name == IMAGE else tensor.long() if name in self.targets else tensor)
            if tensor.dtype == torch.uint8
            else tensor
            for name, tensor in kept.items()
        }

    def _read(self, case: Case) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, bool]]:
        image, volume = self.preprocess.read(inside(self.root, case.image))
        like = (self.preprocess.volume, volume) if self.preprocess.volume is not None and volume is not None else None
        sample: dict[str, Tensor] = {"image": image}
        scalars: dict[str, Tensor] = {}
        labelled: dict[str, bool] = {}
        for name, target in self.targets.items():
            if isinstance(target, AnnotatorsTarget):
                planes = target.planes(case, name, self.root, like)
                labelled[name] = bool(planes)
                for number, plane in planes.items():
                    _same_size(plane, image, f"{name}.{(*target.annotators, 'staple')[number]}")
                    sample[_plane(name, number)] = plane
                continue
            cell = case.targets.get(name)
            labelled[name] = cell is not None
            if cell is None:
                value = target.placeholder(tuple(image.shape[1:]))
            elif isinstance(target, MaskTarget):
                value = target.read(case, cell, self.root, like)
            else:
                value = target.read(case, cell, self.root)
            if target.dense:
                _same_size(value, image, name)
                sample[name] = value
            else:
                scalars[name] = value
        reach = None if self.preprocess.patches is not None else self._reach
        return self.preprocess.context(sample, size=reach), scalars, labelled

    def _patch(self, draw: Draw) -> tuple[Kept, Tensor]:
        """(As :meth:`read`, but a patch with its surroundings; the whole image)."""
        index = draw.index
        kept, scalars, labelled = self._read_or_kept(index)
        patches, size = self.preprocess.patches, self._reach
        assert patches is not None and size is not None
        found: list[Places] = []
        if patches.foreground:
            names = [name for name in kept if name != IMAGE and labelled[name.partition("/")[0]]]
            found = self._marks[index] if index in self._marks else marks(kept[name] for name in names)
            self._marks[index] = found
        rng = np.random.Generator(np.random.PCG64(counted("patch", self.seed, draw.epoch, draw.position)))
        start = patches.draw(rng, kept[IMAGE].shape[1:], found)
        cut = {name: patches.around(tensor, start, size) for name, tensor in kept.items()}
        return (self._whole(cut), scalars, labelled), self._whole({IMAGE: kept[IMAGE]})[IMAGE]

    def fill(self, tick: Callable[[int], None] = lambda done: None) -> None:
        """Read every case now (in the parent process, so that workers share the memory)."""
        for index in range(len(self)):
            self.read(index)
            tick(1)

    def __getitem__(self, draw: Draw | int) -> Sample:
        index = draw.index if isinstance(draw, Draw) else draw
        whole: Tensor | None = None
        if self.preprocess.patches is not None and isinstance(draw, Draw):
            (sample, scalars, labelled), whole = self._patch(draw)
        else:
            sample, scalars, labelled = self.read(index)
        if self._pipeline is not None and isinstance(draw, Draw):
            seed = counted("augment", self.seed, draw.epoch, draw.position)
            reference = (
                self.read(seed % len(self))[0]["image"]
                if self.augment is not None and self.augment.fourier.on
                else None
            )
            keys = tuple(name for name in sample if name != IMAGE)  # annotators differ from case to case
            sample = replace(self._pipeline, dense_keys=keys)(sample, seed, reference)
        else:
            sample = self.preprocess.to_window(sample)
        sample = self.preprocess.finish(sample, whole)
        case = self.cases[index]
        domain = self.domains.index(case.domain) if case.domain in self.domains else -1
        image = sample["image"]
        if not torch.isfinite(image).all():
            raise UserError(
                "E-IMG-FINITE",
                "the preprocessed image holds NaN or infinity",
                "check the image and the augmentation",
                where=f"case {case.case_id}",
            )
        dense = {name: _joined(name, target, sample) for name, target in self.targets.items() if target.dense}
        weights = {column: case_weight(case, column) for column in self.weigh}
        covariates = None if self.covariates is None else self.covariates.of(case)
        stratum = -1 if self.strata is None else _place(case.meta.get(self.strata[0]), self.strata[1])
        return Sample(image, {**scalars, **dense}, labelled, domain, case.case_id, weights, covariates, stratum)


def _named(case: Case, where: str) -> str:
    """The place of an error in a case, which a label's reader has named already."""
    named = f"case {case.case_id} (manifest row {case.row})"
    return named if where in ("", f"manifest row {case.row}, case {case.case_id}") else f"{named}, {where}"


def _place(cell: str | None, names: tuple[str, ...]) -> int:
    """Where the cell is among the names; -1 where it is none of them."""
    return names.index(cell) if cell in names else -1


def case_weight(case: Case, column: str) -> float:
    """What ``meta.<column>`` says a case weighs, a positive finite number; 1 where the cell is empty."""
    cell = case.meta.get(column, "1")
    try:
        weight = float(cell)
    except ValueError:
        weight = math.nan
    if not 0 < weight < math.inf:
        raise UserError(
            "E-TGT-WEIGHT",
            f"meta.{column} is {cell!r}, a weight is a positive finite number",
            "correct the cell; empty it for a weight of 1, empty the target to leave the case out",
            where=f"manifest row {case.row}, case {case.case_id}",
        )
    return weight


def _same_size(mask: Tensor, image: Tensor, name: str) -> None:
    if mask.shape != image.shape[1:]:
        raise UserError(
            "E-TGT-SIZE",
            f"mask target.{name} is {tuple(mask.shape)}, the image {tuple(image.shape[1:])}",
            "make the mask on the image's own grid",
        )


def _plane(name: str, number: int) -> str:
    """The key in a sample of one annotator's mask: no column has it, since '/' would be a folder."""
    return f"{name}/{number}"


def _joined(name: str, target: Target, sample: Mapping[str, Tensor]) -> Tensor:
    """A dense target of a sample: as it is, or the planes of the annotators stacked."""
    if not isinstance(target, AnnotatorsTarget):
        return sample[name]
    numbers = range(len(target.annotators) + target.staple)
    planes = {number: sample[key] for number in numbers if (key := _plane(name, number)) in sample}
    return target.join(planes, tuple(sample[IMAGE].shape[1:]))


def _compact(image: Tensor) -> Tensor:
    """Eight bits a channel where the image has no more (decoded PNG or JPEG), else as it is."""
    scaled = image * 255
    rounded = scaled.round()
    return rounded.to(torch.uint8) if torch.equal(rounded / 255, image) else image.clone()


def _small(labels: Tensor) -> Tensor:
    """Eight bits where class indices need no more."""
    fits = labels.dtype == torch.int64 and labels.numel() and int(labels.min()) >= 0 and int(labels.max()) < 256
    return labels.to(torch.uint8) if fits else labels


def _begin_worker(worker: int) -> None:
    """One thread, and no end by a signal that is meant for the whole group: the training process ends its workers.

    Otherwise Ctrl-C or a scheduler's SIGTERM would kill the workers while the training process finishes its step. A
    second SIGTERM is obeyed.
    """
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.signal(signal.SIGTERM, signal.SIG_DFL))


@dataclass
class _Caught(Dataset):  # type: ignore[type-arg]
    """Samples, or the error instead of one: torch would turn it into a RuntimeError on its way out of a worker."""

    dataset: CaseDataset

    def __getitem__(self, draw: Draw) -> "Sample | UserError":
        try:
            return self.dataset[draw]
        except UserError as error:
            return error


def _collate(samples: "Sequence[Sample | UserError]") -> "Batch | UserError":
    error = next((sample for sample in samples if isinstance(sample, UserError)), None)
    return error or collate([sample for sample in samples if not isinstance(sample, UserError)])


class BatchLoader(DataLoader):  # type: ignore[type-arg]
    """Batches; a case that cannot be read raises its :class:`UserError` here, whichever process read it."""

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        for item in super().__iter__():
            if isinstance(item, UserError):
                raise item
            yield item


def train_loader(dataset: CaseDataset, order: EpochOrder, *, workers: int, pin: bool) -> BatchLoader:
    """Batches in the order given. Its own generator leaves the global one alone."""
    return BatchLoader(
        _Caught(dataset),
        batch_sampler=order,
        collate_fn=_collate,
        generator=generator("loader"),
        pin_memory=pin,  # type: ignore[arg-type]
        num_workers=workers,
        persistent_workers=workers > 0,
        worker_init_fn=_begin_worker,
        prefetch_factor=4 if workers else None,
    )


def plain_batches(dataset: CaseDataset, indices: Sequence[int], batch_size: int) -> Iterator[Batch]:
    """Unaugmented batches of some cases, in order, in this process; where windows slide over images, one by one."""
    batch_size = 1 if dataset.preprocess.patches is not None else batch_size
    for start in range(0, len(indices), batch_size):
        yield collate([dataset[i] for i in indices[start : start + batch_size]])


def stored_mask(case: Case, cell: str, classes: int, root: Path) -> Any:
    """A NIfTI mask as it is stored, int64 [I, J, K], its values checked."""
    path = inside(root, cell)
    mask = read_nifti(path, labels=True)
    return check_mask(mask, mask, values=range(classes), name=f"{path.name} of case {case.case_id}").array


def labels(cases: Sequence[Case], name: str, target: Target, root: Path, *, volumes: bool = False) -> list[Any]:
    """The labels of one target that exist, as numbers or arrays: what a task is fitted on.

    Masks of ``volumes`` are taken as they are stored; that each fits its image is checked when both are read.
    """
    if volumes and isinstance(target, MaskTarget | AnnotatorsTarget):
        columns = target.columns(name) if isinstance(target, AnnotatorsTarget) else (name,)
        cells = [(case, case.targets[column]) for case in cases for column in columns if column in case.targets]
        return [stored_mask(case, cell, len(target.classes), root) for case, cell in cells]
    if isinstance(target, AnnotatorsTarget):
        masks = replace(target, staple=False)
        return [plane.numpy() for case in cases for plane in masks.planes(case, name, root).values()]
    values = [target.read(case, case.targets[name], root) for case in cases if name in case.targets]
    return [value.numpy() if target.dense else value.item() for value in values]
