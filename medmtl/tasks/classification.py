"""A label out of K classes: two or more."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

import numpy as np
import pandas as pd
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from medmtl import losses, metrics
from medmtl.config import Config
from medmtl.data.target import ClassTarget
from medmtl.models.head import PoolConfig
from medmtl.tasks.base import EncoderShape, Shares, Task, Weights


class CrossEntropyConfig(Config):
    """Cross-entropy, optionally with smoothed labels."""

    kind: Literal["cross_entropy"] = "cross_entropy"
    label_smoothing: float = Field(0.0, ge=0, lt=1)

    def __call__(self, output: Tensor, target: Tensor, class_weights: Tensor | None) -> Tensor:
        return losses.cross_entropy(output, target, class_weights=class_weights, smoothing=self.label_smoothing)


class FocalConfig(Config):
    """Focal loss (Lin et al. 2017)."""

    kind: Literal["focal"] = "focal"
    gamma: float = Field(2.0, ge=0)

    def __call__(self, output: Tensor, target: Tensor, class_weights: Tensor | None) -> Tensor:
        return losses.focal(output, target, gamma=self.gamma, class_weights=class_weights)


AnyClassLoss = Annotated[CrossEntropyConfig | FocalConfig, Field(discriminator="kind")]


class ClassificationBase(Task):
    """What classification of a label and of the domain have in common."""

    classes: tuple[str, ...] = ()
    pool: PoolConfig = PoolConfig()
    criterion: AnyClassLoss = CrossEntropyConfig()
    class_weights: Literal["none", "balanced"] | Weights = "none"
    prior: Shares | None = None  # class frequencies in training, resolved by fit

    def idle(self) -> Mapping[str, str]:
        return {"prior": "fit takes the frequencies of the training labels"}

    def reader(self) -> ClassTarget:
        return ClassTarget(self.classes)

    def fit(self, labels: Sequence[Any]) -> Self:
        """Resolve ``prior``, and ``balanced`` to weights N / (K n_k), whose mean over the training labels is 1."""
        counts = np.bincount(np.asarray(labels, dtype=int), minlength=len(self.classes))
        prior = tuple(float(p) for p in counts / max(counts.sum(), 1))
        weights = self.class_weights
        if weights == "balanced":
            present = counts > 0
            weights = tuple(
                float(w) for w in np.where(present, counts.sum() / (present.sum() * np.maximum(counts, 1)), 1.0)
            )
        return self.model_copy(update={"prior": prior, "class_weights": weights})

    def head(self, encoder: EncoderShape) -> nn.Module:
        """Logits [B, K]; the bias starts at the log prior, so that training begins at the constant predictor."""
        module = self.pool.build(encoder.channels[-1], len(self.classes))
        if self.prior is not None and not isinstance(self.class_weights, tuple):
            with torch.no_grad():
                module.affine.bias.copy_(torch.tensor(self.prior).clamp(min=1e-3).log())
        else:
            nn.init.zeros_(module.affine.bias)
        return module

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        weights = (
            torch.tensor(self.class_weights, device=output.device) if isinstance(self.class_weights, tuple) else None
        )
        return self.criterion(output, target, weights)

    def decode(self, output: Tensor) -> Tensor:
        return output.softmax(1)

    def row(self, decoded: Tensor, target: Tensor | None) -> dict[str, float | str]:
        predicted = self.decide(decoded)
        known: dict[str, float | str] = (
            {} if target is None else {"target": float(target), "target_label": self.classes[int(target)]}
        )
        return {
            **known,
            "prediction": float(predicted),
            "predicted_label": self.classes[predicted],
            **{f"p.{name}": p for name, p in zip(self.classes, decoded.tolist(), strict=True)},
        }

    def decide(self, probabilities: Tensor) -> int:
        """The class of one case from its probabilities [K]."""
        return int(probabilities.argmax())

    def probabilities(self, table: pd.DataFrame) -> np.ndarray:
        """The table's probability columns, [N, K]."""
        return table[[f"p.{name}" for name in self.classes]].to_numpy(float)

    def metrics(self, table: pd.DataFrame, weights: np.ndarray) -> dict[str, np.ndarray]:
        return metrics.multiclass(table["target"].to_numpy(int), self.probabilities(table), weights)

    def constant(self, table: pd.DataFrame) -> pd.DataFrame:
        """Every case gets the training prior."""
        prior = self.prior or (1 / len(self.classes),) * len(self.classes)
        row = self.row(torch.tensor(prior), None)
        return table.assign(**row)


class Classification(ClassificationBase):
    """One label per case. With two classes it is binary: ``positive`` is the one that sensitivity is about."""

    kind: Literal["classification"] = "classification"
    positive: str | None = None  # binary: the positive class; None: the last one
    threshold: float | None = (
        None  # binary: probability of ``positive`` from which it is predicted; chosen on validation
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(self.classes) < 2 or len(set(self.classes)) != len(self.classes):
            raise ValueError(f"classes must be two or more different names, found {list(self.classes)}")
        if self.positive is not None and self.positive not in self.classes:
            raise ValueError(f"positive {self.positive!r} is not one of the classes {list(self.classes)}")
        if self.positive is not None and len(self.classes) != 2:
            raise ValueError("positive is for two classes")
        if self.threshold is not None and (len(self.classes) != 2 or not 0 <= self.threshold <= 1):
            raise ValueError("threshold is a probability, for two classes")
        if isinstance(self.class_weights, tuple) and len(self.class_weights) != len(self.classes):
            raise ValueError(f"class_weights has {len(self.class_weights)} numbers for {len(self.classes)} classes")
        return self

    def idle(self) -> Mapping[str, str]:
        return {**super().idle(), "threshold": "it is chosen on validation (until then it is 0.5)"}

    @property
    def headline(self) -> tuple[str, ...]:
        return ("auroc", "balanced_accuracy", "auprc") if self.binary else ("balanced_accuracy", "auroc", "cohen_kappa")

    @property
    def frozen(self) -> Mapping[str, Any]:
        return {"positive": self.classes[self.positive_index], "threshold": self.threshold} if self.binary else {}

    @property
    def binary(self) -> bool:
        return len(self.classes) == 2

    @property
    def positive_index(self) -> int:
        return self.classes.index(self.positive or self.classes[-1])

    def decide(self, probabilities: Tensor) -> int:
        if not self.binary:
            return int(probabilities.argmax())
        positive = self.positive_index
        threshold = 0.5 if self.threshold is None else self.threshold
        return positive if float(probabilities[positive]) >= threshold else 1 - positive

    def metrics(self, table: pd.DataFrame, weights: np.ndarray) -> dict[str, np.ndarray]:
        if not self.binary:
            return super().metrics(table, weights)
        truth, probability = self.positive_truth(table)
        return metrics.binary(truth, probability, 0.5 if self.threshold is None else self.threshold, weights)

    def positive_truth(self, table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
        """(1 where the positive class is true, its probability), each [N]."""
        positive = self.positive_index
        return (table["target"].to_numpy(float) == positive).astype(int), self.probabilities(table)[:, positive]

    def freeze(self, table: pd.DataFrame) -> Self:
        """These settings with the threshold that is best on a *validation* table (binary), otherwise unchanged."""
        labelled = table[table["target"].notna()]
        truth, probability = self.positive_truth(labelled) if self.binary else (np.array([]), np.array([]))
        if len(set(truth)) < 2:
            return self
        return self.model_copy(update={"threshold": metrics.bagged_threshold(truth, probability, labelled["group"])})
