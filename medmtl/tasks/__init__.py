"""Tasks: settings plus functions, told apart by ``kind``."""

from typing import Annotated

from pydantic import Field

from medmtl.tasks.annotators import Annotators
from medmtl.tasks.classification import Classification
from medmtl.tasks.domain import Domain, DomainAdversary
from medmtl.tasks.ordinal import Ordinal
from medmtl.tasks.regression import Regression
from medmtl.tasks.segmentation import Segmentation

AnyTask = Annotated[
    Classification | Ordinal | Regression | Segmentation | Annotators | Domain | DomainAdversary,
    Field(discriminator="kind"),
]
