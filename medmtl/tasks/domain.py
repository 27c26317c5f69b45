"""The domain (scanner, site, stain) as a label: to be recognised, or to be hidden from."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

from pydantic import Field
from torch import nn

from medmtl.errors import UserError
from medmtl.models.head import AdversaryHead, Strength
from medmtl.tasks.base import EncoderShape
from medmtl.tasks.classification import ClassificationBase


class Domain(ClassificationBase):
    """Plain classification of the domain. ``classes`` are the training domains, resolved when the study is built."""

    kind: Literal["domain"] = "domain"
    target: Literal["domain"] = "domain"
    auxiliary: bool = True

    def idle(self) -> Mapping[str, str]:
        return {**super().idle(), "classes": "they are the domains of the training part"}

    def fit(self, labels: Sequence[Any]) -> Self:
        if isinstance(self.class_weights, tuple) and len(self.class_weights) != len(self.classes):
            raise UserError(
                "E-CFG-DOMAIN",
                f"class_weights has {len(self.class_weights)} numbers, the training part {len(self.classes)} domains: "
                f"{', '.join(self.classes)}",
                "give one for each, in this order, or write balanced",
                where="tasks, kind: " + self.kind,
            )
        return super().fit(labels)

    @property
    def headline(self) -> tuple[str, ...]:
        return ("balanced_accuracy",)


class DomainAdversary(Domain):
    """Classification of the domain behind a gradient reversal (Ganin et al. 2016): the encoder learns to hide it.

    Auxiliary, because a conflict-removing balancer would disarm an adversary, which conflicts by design.
    """

    kind: Literal["domain_adversary"] = "domain_adversary"  # type: ignore[assignment]
    auxiliary: Literal[True] = True
    strength: Strength = Field(Strength())

    def head(self, encoder: EncoderShape) -> nn.Module:
        return AdversaryHead(super().head(encoder), self.strength)
