"""A class for every pixel, learned from the masks of several annotators who disagree."""

from collections.abc import Mapping, Sequence, Set
from typing import Literal, Self

import numpy as np
import pandas as pd
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from medmtl import losses, metrics
from medmtl.agreement.consensus import majority
from medmtl.agreement.sets import dice_overlaps, generalised_energy_distance
from medmtl.data.target import ABSENT, AnnotatorsTarget
from medmtl.errors import UserError
from medmtl.mask_metrics import mask_scores
from medmtl.models.decoder import Decoder
from medmtl.tasks.base import EncoderShape
from medmtl.tasks.segmentation import Segmentation

_SPEED = 10.0  # Adam moves a parameter by about the learning rate a step; a matrix has to move by units


class Annotators(Segmentation):
    """Segmentation from the columns ``target.<name>.<annotator>``, any subset of which is filled for an image.

    ``training`` is what the loss compares the network with. ``confusion``: each annotator's own mask, through a K x K
    matrix of what the annotator says where the truth is j, learned in the head (Tanno et al., CVPR 2019); it does not
    depend on the image, so that it describes skill and bias in the mean, not where on a border somebody errs.
    ``each``: each mask as if it were the truth. ``soft``: the share of annotators. ``majority``, ``staple``: these
    (:mod:`medmtl.agreement.consensus`); the majority of two is where both agree.

    The decoded map is the consensus. Scores per class compare it with ``reference``, computed from the same masks
    whatever is trained on, so that ways of training can be compared.
    """

    kind: Literal["annotators"] = "annotators"  # type: ignore[assignment]
    annotators: tuple[str, ...] = ()  # empty: every column target.<name>.<annotator> of the manifest
    training: Literal["confusion", "each", "soft", "majority", "staple"] = "confusion"
    reference: Literal["majority", "staple"] = "majority"
    trace: float = Field(0.01, ge=0)  # weight of the mean diagonal of the matrices, which is kept low
    diagonal: float = Field(0.9, gt=0, lt=1)  # of the matrices at the start
    levels: tuple[float, ...] = Field((0.25, 0.5, 0.75), min_length=1)  # foreground probabilities; the predicted set

    @model_validator(mode="after")
    def _check_set(self) -> Self:
        if len(set(self.annotators)) != len(self.annotators):
            raise ValueError(f"an annotator is named twice: {list(self.annotators)}")
        if not all(0 < level < 1 for level in self.levels):
            raise ValueError(f"levels are probabilities between 0 and 1, found {list(self.levels)}")
        if self.training == "confusion" and self.class_weights is not None:
            raise ValueError("class_weights would pass for confusion; leave them out or change `training`")
        if self.training == "confusion" and self.diagonal * len(self.classes) <= 1:
            raise ValueError(f"diagonal {self.diagonal} is no better than chance among {len(self.classes)} classes")
        return self

    def idle(self) -> Mapping[str, str]:
        if self.training == "confusion":
            return super().idle()
        why = "only `training: confusion` has matrices"
        return {**super().idle(), "trace": why, "diagonal": why}

    @property
    def headline(self) -> tuple[str, ...]:
        return (*super().headline, "ged", "agreement")

    def columns(self, name: str) -> tuple[str, ...]:
        return tuple(f"{self.target or name}.{annotator}" for annotator in self.annotators)

    def reader(self) -> AnnotatorsTarget:  # type: ignore[override]
        return AnnotatorsTarget(self.classes, self.annotators, staple="staple" in (self.training, self.reference))

    def named(self, name: str, columns: Sequence[str]) -> Self:
        """These settings with ``annotators`` taken from the manifest's target columns where they were left open."""
        prefix = f"{self.target or name}."
        found = tuple(sorted(column.removeprefix(prefix) for column in columns if column.startswith(prefix)))
        if not self.annotators and not found:
            raise UserError(
                "E-CFG-TARGET",
                f"task {name!r} needs columns target.{prefix}<annotator>, the manifest has none",
                "write one column of masks for each annotator, or use kind: segmentation for target." + prefix[:-1],
                where=f"tasks.{name}",
            )
        return self if self.annotators else self.model_copy(update={"annotators": found})

    def check_annotators(self, filled: Set[str], name: str) -> None:
        """Refuse to learn confusion from one annotator: nothing would tell the annotator from the truth.

        ``filled``: the target columns in which a training case has something.
        """
        trained = [who for who, column in zip(self.annotators, self.columns(name), strict=True) if column in filled]
        if self.training == "confusion" and len(trained) < 2:
            raise UserError(
                "E-CFG-ANNOTATORS",
                f"the training part has masks of {len(trained)} annotator(s) ({', '.join(trained)}), task {name!r} "
                "compares two or more",
                "add masks, or set training: each, or use kind: segmentation",
                where=f"tasks.{name}",
            )

    def head(self, encoder: EncoderShape) -> nn.Module:
        """Logits [B, K, *S]; with ``confusion``, the matrices follow as R K K channels."""
        assert self.annotators, "named() resolves who they are before a model is built"
        decoder = super().head(encoder)
        if self.training != "confusion":
            return decoder
        assert isinstance(decoder, Decoder)
        return AnnotatorsHead(decoder, len(self.annotators), len(self.classes), self.diagonal)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """[B]: the mean over the annotators who are there; who is absent contributes an exact zero."""
        logits, masks = output[:, : len(self.classes)], target[:, : len(self.annotators)]
        weights = None if self.class_weights is None else torch.tensor(self.class_weights)
        match self.training:
            case "staple":
                return losses.dice_cross_entropy(logits, target[:, -1].clamp(min=0), class_weights=weights)
            case "majority":
                most = self._counts(masks).argmax(1)  # the first of the largest, as in agreement.consensus
                return losses.dice_cross_entropy(logits, most, class_weights=weights)
            case "soft":
                counts = self._counts(masks).to(logits)
                share = counts / counts.sum(1, keepdim=True)
                return losses.soft_dice_cross_entropy(logits, share, class_weights=weights)
        b, r = _present(masks).nonzero(as_tuple=True)
        if self.training == "each":
            single = losses.dice_cross_entropy(logits[b], masks[b, r], class_weights=weights)
        else:
            log_confusion = self._log_confusion(output)[b, r]
            single = losses.confused_cross_entropy(logits[b], log_confusion, masks[b, r])
            single = single + self.trace * log_confusion.diagonal(dim1=1, dim2=2).exp().mean(1)
        return _mean_over_present(single, b, r, masks)

    def decode(self, output: Tensor) -> Tensor:
        """Probability of the consensus' classes, [B, K, *S]."""
        return output[:, : len(self.classes)].softmax(1)

    def row(self, decoded: Tensor, target: Tensor | None) -> dict[str, float | str]:
        """As for a segmentation, against ``reference``; and against the annotators, one by one and as a set.

        ``agreement`` (Dice), ``agreement_iou``, ``agreement_hd95`` with each annotator, means over the foreground
        classes; ``agreement`` also as the mean over the annotators, beside ``human_agreement``, that of the annotators
        with each other. ``ged``: :func:`~medmtl.agreement.sets.generalised_energy_distance` (V-statistic) of their
        masks to the predicted set, which is the nested masks at ``levels``: the network has no samples to draw.
        """
        if target is None:
            return super().row(decoded, None)
        planes = target.cpu().numpy()
        masks = {name: mask for name, mask in zip(self.annotators, planes, strict=False) if mask.flat[0] != ABSENT}
        drawn, K = np.stack(list(masks.values())), len(self.classes)
        consensus = majority(drawn, classes=K) if self.reference == "majority" else planes[-1]
        row = super().row(decoded, torch.from_numpy(consensus))
        predicted = decoded.max(0).indices.cpu().numpy()
        for name in self.annotators:
            row |= self._with_annotator(name, predicted, masks.get(name))
        within = dice_overlaps(drawn, drawn, classes=K)[np.triu_indices(len(drawn), 1)]
        return {
            **row,
            "agreement": float(dice_overlaps(predicted[None], drawn, classes=K).mean()),
            "human_agreement": float(within.mean()) if len(within) else float("nan"),
            "ged": generalised_energy_distance(self.predicted_set(decoded), drawn, classes=K),
        }

    def predicted_set(self, decoded: Tensor) -> np.ndarray:
        """One mask per level, [M, *S]: foreground where its probability reaches the level, there its best class."""
        probability = decoded.cpu().numpy()
        best, foreground = 1 + probability[1:].argmax(0), 1 - probability[0]
        return np.stack([np.where(foreground >= level, best, 0) for level in self.levels])

    def metrics(self, table: pd.DataFrame, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Means over the cases where a score is defined; an annotator's over the cases with a mask of theirs."""
        scores = [f"{metric}.{name}" for name in self.classes[1:] for metric in ("dice", "iou", "hd95")]
        columns = [*scores, "ged", "agreement", "human_agreement", *self._person_columns()]
        values = table.reindex(columns=columns)  # a table without any labelled case has none of them
        return {column: metrics.weighted_nanmean(values[column].to_numpy(float), weights) for column in columns}

    def constant(self, table: pd.DataFrame) -> pd.DataFrame:
        """Background everywhere, scored against the reference; how it agrees with single annotators is left out."""
        unknown = dict.fromkeys(("ged", "agreement", *self._person_columns()), float("nan"))
        return super().constant(table).assign(**unknown)

    def confusions(self, head: nn.Module) -> pd.DataFrame:
        """``annotator, truth, said, probability``: the matrices that a head has learned; no row without any."""
        columns = ["annotator", "truth", "said", "probability"]
        if not isinstance(head, AnnotatorsHead):
            return pd.DataFrame(columns=columns)
        A_RKK = head.matrices().detach().cpu().numpy()
        rows = [
            (annotator, truth, said, float(A_RKK[r, j, k]))
            for r, annotator in enumerate(self.annotators)
            for j, truth in enumerate(self.classes)
            for k, said in enumerate(self.classes)
        ]
        return pd.DataFrame(rows, columns=columns)

    def skills(self, head: nn.Module) -> list[str]:
        """A sentence for each annotator: how often the head believes that each class was recognised."""
        table = self.confusions(head)
        right = table[table["truth"] == table["said"]]
        return [
            f"{annotator} recognises "
            + ", ".join(f"{truth} on {p:.0%}" for truth, p in zip(rows["truth"], rows["probability"], strict=True))
            + " of its pixels, as learned with the consensus"
            for annotator, rows in right.groupby("annotator", sort=False)
        ]

    def _counts(self, masks: Tensor) -> Tensor:
        """Votes for each class, [B, K, *S]."""
        return torch.stack([(masks == k).sum(1) for k in range(len(self.classes))], 1)

    def _log_confusion(self, output: Tensor) -> Tensor:
        """[B, R, K, K] out of the output's further channels, which are the same at every pixel."""
        R, K = len(self.annotators), len(self.classes)
        return output[:, K:].flatten(2)[:, :, 0].reshape(-1, R, K, K).log_softmax(-1)

    def _with_annotator(self, name: str, predicted: np.ndarray, mask: np.ndarray | None) -> dict[str, float]:
        families = {"dice": "agreement", "iou": "agreement_iou", "hd95": "agreement_hd95"}
        if mask is None:
            return {f"{family}.{name}": float("nan") for family in families.values()}
        scores = mask_scores(predicted, mask, classes=self.classes, spacing=self.spacing_mm)
        return {
            f"{family}.{name}": _defined_mean([scores[f"{metric}.{label}"] for label in self.classes[1:]])
            for metric, family in families.items()
        }

    def _person_columns(self) -> list[str]:
        return [f"{family}.{name}" for name in self.annotators
                for family in ("agreement", "agreement_iou", "agreement_hd95")]  # fmt: skip


class AnnotatorsHead(nn.Module):
    """A decoder, and the annotators' confusion matrices as channels that are the same at every pixel.

    One tensor [B, K + R K K, *S] is a plain output like any other, for losses, ranks and precisions alike; beside an
    EfficientNet-B0 it costs a step 1 % for four annotators and two classes, 5 % for fifteen. The parameter has one
    axis, so that weight decay does not pull the matrices towards guessing.
    """

    def __init__(self, decoder: Decoder, annotators: int, classes: int, diagonal: float) -> None:
        super().__init__()
        start = torch.full((classes, classes), (1 - diagonal) / (classes - 1)).fill_diagonal_(diagonal).log()
        self.decoder, self.classes = decoder, classes
        self.confusion = nn.Parameter(start.repeat(annotators, 1, 1).flatten() / _SPEED)

    def matrices(self) -> Tensor:
        """[R, K, K]: the probability that annotator r says k where the truth is j; rows add up to 1."""
        return (_SPEED * self.confusion).view(-1, self.classes, self.classes).softmax(-1)

    def forward(self, pyramid: Sequence[Tensor]) -> Tensor:
        logits = self.decoder(pyramid)
        channels = (_SPEED * self.confusion).view(1, -1, *[1] * (logits.ndim - 2))
        return torch.cat([logits, channels.expand(len(logits), -1, *logits.shape[2:])], 1)


def _present(masks: Tensor) -> Tensor:
    """bool [B, R]: which planes hold a mask."""
    return masks.flatten(2)[:, :, 0] != ABSENT


def _mean_over_present(single_M: Tensor, b: Tensor, r: Tensor, masks: Tensor) -> Tensor:
    """[B] from one loss for each mask that there is; M of them, of sample b and annotator r."""
    everyone = single_M.new_zeros(masks.shape[:2]).index_put((b, r), single_M)
    return everyone.sum(1) / _present(masks).sum(1).clamp(min=1)


def _defined_mean(values: Sequence[float]) -> float:
    defined = [value for value in values if not np.isnan(value)]
    return float(np.mean(defined)) if defined else float("nan")
