"""Which controls a study is evaluated against, beside the training mean and median, which always are."""

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from medmtl.config import Config

MEAN, MEDIAN = "training_mean", "training_median"
_LETTERS = set("abcdefghijklmnopqrstuvwxyz0123456789_")


class Linear(Config):
    """A linear model of the preprocessed image averaged over a coarse grid, and of ``meta.*`` columns.

    ``grid`` cells along each axis and channel are the features; with ``components`` their principal components.
    ``numeric`` and ``categorical`` columns join them (encoded as the network's covariates are); with ``image: false``
    they are alone.
    """

    name: str | None = None  # in tables and reports; None: made of kind and features
    grid: int = Field(6, ge=1, le=32)
    components: int | None = Field(None, ge=1)
    image: bool = True
    numeric: tuple[str, ...] = ()
    categorical: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.image and not self.columns:
            raise ValueError("image: false leaves no feature; name numeric or categorical columns")
        if any(column.startswith("meta.") for column in self.columns):
            raise ValueError("columns are named without 'meta.'")
        return self

    def idle(self) -> Mapping[str, str]:
        why = "image: false leaves the image out"
        return {} if self.image else {"grid": why, "components": why}

    @property
    def columns(self) -> tuple[str, ...]:
        return (*self.numeric, *self.categorical)


class RidgeControl(Linear):
    """Penalised by squared weights; of classes, logistic regression with the same penalty."""

    kind: Literal["ridge"] = "ridge"


class ElasticNetControl(Linear):
    """Penalised by squared and absolute weights; numbers and levels only."""

    kind: Literal["elastic_net"] = "elastic_net"


class CarryForward(Config):
    """The value of a ``meta.*`` column, such as the score at baseline, is the prediction. Task -> column."""

    kind: Literal["carry_forward"] = "carry_forward"
    name: str | None = None
    columns: dict[str, str] = Field(min_length=1)


AnyLinear = RidgeControl | ElasticNetControl
AnyControl = Annotated[RidgeControl | ElasticNetControl | CarryForward, Field(discriminator="kind")]


def control_name(control: AnyControl) -> str:
    """``ridge``, ``ridge_with_covariates``, ``ridge_of_covariates``, ``carry_forward``, or the name it was given."""
    if control.name is not None:
        return control.name
    if isinstance(control, CarryForward) or not control.columns:
        return control.kind
    return f"{control.kind}_{'with' if control.image else 'of'}_covariates"


def check_controls(controls: tuple[AnyControl, ...]) -> tuple[AnyControl, ...]:
    """Refuse two controls of one name, and a name that is taken or could not be a file's."""
    names = [control_name(control) for control in controls]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"two controls are called {name!r}; give one another `name`")
        if name in (MEAN, MEDIAN, "constant", "") or set(name) - _LETTERS:
            raise ValueError(
                f"a control cannot be called {name!r}; use small letters, digits and '_', as in ridge_fine"
            )
    return controls
