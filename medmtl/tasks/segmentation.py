"""A class for every pixel or voxel."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

import numpy as np
import pandas as pd
import torch
from pydantic import PositiveFloat, model_validator
from torch import Tensor, nn

from medmtl import losses, metrics
from medmtl.data.target import MaskTarget
from medmtl.mask_metrics import mask_scores
from medmtl.models.decoder import DecoderConfig
from medmtl.tasks.base import EncoderShape, Shares, Task, Weights

_MEAN, _FEW = "mean", 3  # classes with the background: more of them are told by their mean first


class Segmentation(Task):
    """K classes per pixel; the first is the background. Loss: half soft Dice, half cross-entropy."""

    kind: Literal["segmentation"] = "segmentation"
    classes: tuple[str, ...]
    decoder: DecoderConfig = DecoderConfig()
    class_weights: Weights | None = None
    spacing_mm: tuple[PositiveFloat, ...] | None = None  # of the network's input; None: distances are in pixels
    prior: Shares | None = None  # share of each class over the training pixels, resolved by fit

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(self.classes) < 2 or len(set(self.classes)) != len(self.classes):
            raise ValueError(
                f"classes must be two or more different names, background first, found {list(self.classes)}"
            )
        if _MEAN in self.classes:
            raise ValueError(f"a class is called {_MEAN!r}, which is what the mean over classes is called; rename it")
        if self.class_weights is not None and len(self.class_weights) != len(self.classes):
            raise ValueError(f"class_weights has {len(self.class_weights)} numbers for {len(self.classes)} classes")
        return self

    def idle(self) -> Mapping[str, str]:
        return {"prior": "fit takes the shares of the training masks"}

    @property
    def headline(self) -> tuple[str, ...]:
        """Dice and HD95 of each class; of three or more, Dice alone, their mean first."""
        if len(self.classes) > _FEW:
            return (f"dice.{_MEAN}", *(f"dice.{name}" for name in self.classes[1:]))
        return tuple(f"{metric}.{name}" for name in self.classes[1:] for metric in ("dice", "hd95"))

    @property
    def _overlaps(self) -> tuple[str, ...]:
        return tuple(f"dice.{name}" for name in self.classes[1:])

    def reader(self) -> MaskTarget:
        return MaskTarget(self.classes)

    def fit(self, labels: Sequence[Any]) -> Self:
        """Resolve ``prior`` from label images [*S]."""
        if not labels:
            return self
        counts = np.sum(
            [np.bincount(np.asarray(label).ravel(), minlength=len(self.classes)) for label in labels], axis=0
        )
        return self.model_copy(update={"prior": tuple(float(p) for p in counts / np.sum(counts))})

    def head(self, encoder: EncoderShape) -> nn.Module:
        """Logits [B, K, *S]; the bias starts at the log prior."""
        module = self.decoder.build(encoder.channels, encoder.strides, len(self.classes))
        if self.prior is not None:
            module.start_at(self.prior)
        return module

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        weights = None if self.class_weights is None else torch.tensor(self.class_weights)
        return losses.dice_cross_entropy(output, target, class_weights=weights)

    def decode(self, output: Tensor) -> Tensor:
        return output.softmax(1)

    def row(self, decoded: Tensor, target: Tensor | None) -> dict[str, float | str]:
        """Foreground fractions as ``target`` and ``prediction``; true area, Dice, IoU and HD95 per foreground class.

        Of two or more classes ``dice.mean`` is the mean over them, a class that neither mask has counting 1.
        """
        predicted = decoded.max(0).indices  # argmax takes ten times as long over this axis
        row: dict[str, float | str] = {"prediction": float((predicted > 0).float().mean())}
        if target is None:
            return row
        scores = mask_scores(
            predicted.cpu().numpy(), target.cpu().numpy(), classes=self.classes, spacing=self.spacing_mm
        )
        if len(self.classes) > 2:
            scores[f"dice.{_MEAN}"] = float(np.mean([scores[name] for name in self._overlaps]))
        shares = {f"area.{name}": float((target == k).float().mean()) for k, name in enumerate(self.classes) if k}
        return {**row, "target": float((target > 0).float().mean()), **shares, **scores}

    def metrics(self, table: pd.DataFrame, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Means over cases; HD95 over the cases where it is defined."""
        columns = [f"{metric}.{name}" for name in self.classes[1:] for metric in ("dice", "iou", "hd95")]
        columns += [f"dice.{_MEAN}"] if len(self.classes) > 2 else []
        values = table.reindex(columns=columns)  # a table without any labelled case has none of them
        return {column: metrics.weighted_nanmean(values[column].to_numpy(float), weights) for column in columns}

    def constant(self, table: pd.DataFrame) -> pd.DataFrame:
        """Background everywhere: Dice 1 for a class that is not there to find, else 0."""
        columns: dict[str, np.ndarray] = {}
        for name in self.classes[1:]:
            empty = table[f"area.{name}"].to_numpy(float) == 0
            columns |= {
                f"dice.{name}": empty.astype(float),
                f"iou.{name}": empty.astype(float),
                f"hd95.{name}": np.where(empty, 0.0, np.nan),
            }
        if len(self.classes) > 2:
            columns[f"dice.{_MEAN}"] = np.mean([columns[name] for name in self._overlaps], axis=0)
        return table.assign(prediction=0.0, **columns)
