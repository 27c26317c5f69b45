"""The domain (scanner, site, stain) as a label: to be recognised, or to be hidden from."""

from typing import Literal

from pydantic import Field
from torch import nn

from medmtl.models.head import AdversaryHead, Strength
from medmtl.tasks.base import EncoderShape
from medmtl.tasks.classification import ClassificationBase


class Domain(ClassificationBase):
    """Plain classification of the domain. ``classes`` are the training domains, resolved when the study is built."""

    kind: Literal["domain"] = "domain"
    target: Literal["domain"] = "domain"
    auxiliary: bool = True

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
