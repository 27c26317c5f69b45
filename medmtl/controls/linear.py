"""Linear models whose penalty is chosen by inner cross-validation over groups of training cases. Deterministic."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import ElasticNet, LogisticRegression, Ridge
from sklearn.model_selection import GroupKFold
from sklearn.preprocessing import StandardScaler

Array = npt.NDArray[np.float64]
Kind = Literal["ridge", "elastic_net"]
FOLDS = 5
CASES, GROUPS = 10, 3  # fewer labelled training cases or groups give no model
_PENALTIES = np.logspace(0, 6, 13)  # of squared weights of standardised features
_SMALLEST = 1e-6  # a probability in the inner loss


@dataclass(frozen=True)
class Training:
    """Labelled training cases: features [N, F + P], of which the first ``image`` are of the image, labels, groups."""

    features: Array
    image: int
    labels: Array
    groups: npt.NDArray[np.str_]

    @property
    def too_few(self) -> str:
        """Why no model is fitted; empty where one is."""
        if len(self.labels) < CASES:
            return f"{len(self.labels)} labelled training cases, {CASES} are needed"
        groups = len(set(self.groups))
        return f"{groups} groups of training cases, {GROUPS} are needed" if groups < GROUPS else ""

    def folds(self) -> list[tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]]:
        """(fitted on, judged on) of each inner fold; no group is on both sides."""
        splitter = GroupKFold(n_splits=min(FOLDS, len(set(self.groups))))
        return list(splitter.split(self.features, self.labels, self.groups))


@dataclass(frozen=True)
class Encoder:
    """Features standardised by the cases that it was fitted on; those of the image as their principal components."""

    scaler: StandardScaler
    image: int
    components: PCA | None

    @classmethod
    def of(cls, features: Array, image: int, components: int | None) -> "Encoder":
        scaler = StandardScaler().fit(features)
        if components is None or not image:
            return cls(scaler, image, None)
        most = min(components, len(features), image)
        return cls(scaler, image, PCA(most, svd_solver="full").fit(scaler.transform(features)[:, :image]))

    def __call__(self, features: Array) -> Array:
        scaled: Array = self.scaler.transform(features)
        if self.components is None:
            return scaled
        return np.hstack([self.components.transform(scaled[:, : self.image]), scaled[:, self.image :]])


@dataclass(frozen=True)
class Fitted:
    """A model of all training cases, and the penalty that the inner folds chose."""

    encoder: Encoder
    model: Any
    chosen: dict[str, float]
    centre: float = 0.0  # and scale, of a number
    scale: float = 1.0

    def numbers(self, features: Array) -> Array:
        """Predictions [M]."""
        return self.centre + self.scale * np.asarray(self.model.predict(self.encoder(features)), dtype=np.float64)

    def probabilities(self, features: Array, classes: int) -> Array:
        """Of all classes [M, K]; 0 of one that no training case has."""
        p = np.zeros((len(features), classes))
        p[:, self.model.classes_] = self.model.predict_proba(self.encoder(features))
        return p


def fit_number(training: Training, kind: Kind, components: int | None) -> Fitted:
    """A model of a number, its penalty chosen by mean absolute error."""
    if kind == "ridge":
        models: list[Any] = [Ridge(alpha=alpha) for alpha in _PENALTIES]
    else:
        models = [
            ElasticNet(alpha=alpha, l1_ratio=share, max_iter=2000, tol=1e-3)
            for share in (0.1, 0.5, 0.9)
            for alpha in np.logspace(-3, 0, 7)
        ]
    centre, scale = float(training.labels.mean()), float(training.labels.std()) or 1.0
    labels = (training.labels - centre) / scale
    encoder, model, chosen = _fit(training, labels, models, components, _absolute_error)
    return Fitted(encoder, model, chosen, centre, scale)


def fit_classes(training: Training, components: int | None) -> Fitted:
    """Logistic regression, its penalty chosen by cross-entropy. Folds that fit one class only choose nothing."""
    models = [LogisticRegression(C=1 / alpha, max_iter=2000) for alpha in _PENALTIES]
    return Fitted(*_fit(training, training.labels.astype(int), models, components, _cross_entropy))


Cost = Callable[[Any, Array, npt.NDArray[Any]], float]


def _fit(
    training: Training, labels: npt.NDArray[Any], models: Sequence[Any], components: int | None, cost: Cost
) -> tuple[Encoder, Any, dict[str, float]]:
    """The model with the least mean cost over the inner folds, the first on ties, fitted on all training cases."""
    costs = np.zeros(len(models))
    with warnings.catch_warnings():
        # the weakest penalties may stop early: the folds judge them
        warnings.simplefilter("ignore", ConvergenceWarning)
        # many classes in few cases: meant to be classes
        warnings.filterwarnings("ignore", "The number of unique classes", UserWarning)
        for fitted, judged in training.folds():
            if cost is _cross_entropy and len(set(labels[fitted])) < 2:
                continue
            encoder = Encoder.of(training.features[fitted], training.image, components)
            seen, unseen = encoder(training.features[fitted]), encoder(training.features[judged])
            costs += [cost(clone(model).fit(seen, labels[fitted]), unseen, labels[judged]) for model in models]
        encoder = Encoder.of(training.features, training.image, components)
        best = models[int(np.argmin(costs))].fit(encoder(training.features), labels)
    known = ("C",) if isinstance(best, LogisticRegression) else ("alpha", "l1_ratio")
    return encoder, best, {name: float(best.get_params()[name]) for name in known if name in best.get_params()}


def _absolute_error(model: Any, features: Array, labels: npt.NDArray[Any]) -> float:
    return float(np.abs(model.predict(features) - labels).mean())


def _cross_entropy(model: Any, features: Array, labels: npt.NDArray[Any]) -> float:
    """Less the mean log probability of the true class; of one that the fold did not fit, of the smallest."""
    p = model.predict_proba(features)
    place = {label: k for k, label in enumerate(model.classes_)}
    truth = [p[i, place[label]] if label in place else 0.0 for i, label in enumerate(labels)]
    return -float(np.log(np.clip(truth, _SMALLEST, 1)).mean())
