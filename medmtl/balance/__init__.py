"""Balancers, told apart by ``kind``. TorchJD supplies the weightings; without its optional GPL solvers."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field
from torchjd.aggregation import AlignedMTLWeighting, CAGradWeighting, MGDAWeighting, PCGradWeighting, UPGradWeighting

from medmtl.balance.gramian import Gramian, NonNegativeProjector
from medmtl.balance.static import Balancer, DynamicWeightAverage, Fixed, Uncertainty
from medmtl.config import Config


class FixedConfig(Config):
    """The tasks' own weights."""

    kind: Literal["fixed"] = "fixed"

    def build(self, tasks: int) -> Balancer:
        return Fixed()


class UncertaintyConfig(Config):
    """Learned homoscedastic uncertainties (Kendall et al. 2018)."""

    kind: Literal["uncertainty"] = "uncertainty"

    def build(self, tasks: int) -> Balancer:
        return Uncertainty(tasks)


class DynamicWeightAverageConfig(Config):
    """Dynamic weight average (Liu et al. 2019)."""

    kind: Literal["dwa"] = "dwa"
    temperature: float = Field(2.0, gt=0)

    def build(self, tasks: int) -> Balancer:
        return DynamicWeightAverage(tasks, self.temperature)


class GramianConfig(Config):
    """UPGrad (Quinton & Rey 2024), PCGrad (Yu et al. 2020), MGDA (Desideri 2012; Sener & Koltun 2018), Aligned-MTL
    (Senushkin et al. 2023) and CAGrad (Liu et al. 2021) on the gradients of the shared parameters."""

    kind: Literal["upgrad", "pcgrad", "mgda", "aligned_mtl", "cagrad"]
    shared: Literal["all", "last"] = "all"  # last: only the trailing quarter of the encoder, to save time
    radius: float = Field(
        0.4, ge=0, lt=1
    )  # CAGrad's c; the direction is divided by 1 + c, as the authors' rescale = 2 does

    def idle(self) -> Mapping[str, str]:
        return {} if self.kind == "cagrad" else {"radius": "it is CAGrad's"}

    def build(self, tasks: int) -> Balancer:
        match self.kind:
            case "upgrad":
                return Gramian(UPGradWeighting(projector=NonNegativeProjector()), averages=True)
            case "pcgrad":
                return Gramian(PCGradWeighting(), averages=False)
            case "mgda":
                return Gramian(MGDAWeighting(), averages=True)
            case "aligned_mtl":
                return Gramian(AlignedMTLWeighting(), averages=True)
            case "cagrad":
                return Gramian(CAGradWeighting(c=self.radius), averages=True, gain=1 / (1 + self.radius))


AnyBalancer = Annotated[
    FixedConfig | UncertaintyConfig | DynamicWeightAverageConfig | GramianConfig, Field(discriminator="kind")
]
