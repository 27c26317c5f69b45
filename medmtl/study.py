"""One typed file per study: everything that defines a run."""

from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, model_validator

from medmtl.balance import AnyBalancer, FixedConfig, UncertaintyConfig
from medmtl.bundle import FUSING, check_tasks
from medmtl.config import Config, digest, plain, refuse_idle
from medmtl.controls.config import AnyControl, check_controls
from medmtl.data.augment import Augment
from medmtl.data.covariates import Covariates
from medmtl.data.loader import LoaderConfig
from medmtl.data.preprocess import Preprocess
from medmtl.data.sampler import SamplerConfig
from medmtl.data.split import AnySplit, ColumnSplit
from medmtl.engine.callbacks import TrackingConfig
from medmtl.engine.fit import FitConfig
from medmtl.engine.optim import OptimConfig
from medmtl.errors import UserError
from medmtl.evaluation.aggregate import AggregateConfig
from medmtl.evaluation.failures import FailureConfig
from medmtl.finetune import InitConfig, check_parts
from medmtl.models.encoder import TimmConfig
from medmtl.models.encoders import AnyEncoder
from medmtl.models.views import ViewSet
from medmtl.tasks import AnyTask
from medmtl.tasks.domain import DomainAdversary
from medmtl.tasks.emphasis import Emphasis
from medmtl.tasks.penalties import AnyPenalty, check_penalties
from medmtl.tasks.regression import Regression

HARMLESS = (
    "loader.workers",
    "loader.cache",
    "loader.cache_gib",
    "loader.evaluation_batch_size",
    "tracking",
    "evaluation",
    "fit.device",
    "fit.checkpoint_minutes",
    "fit.threads",
)  # keys that may change between a run and its resumption


class DataConfig(Config):
    """Where the cases are and how they are divided."""

    manifest: str
    split: AnySplit = ColumnSplit()
    stratify: str | None = None  # target column whose classes are spread evenly over the parts; None: the first task's
    check_duplicates: bool = True  # refuse images with equal bytes in two parts


class EvaluationConfig(Config):
    """Intervals, galleries, the analysis of failures (null: none), and how a patient's images are combined."""

    resamples: int = Field(1000, ge=100)
    level: float = Field(0.95, gt=0.5, lt=1)
    gallery: int = Field(12, ge=0)  # worst errors shown per task
    failures: FailureConfig | None = FailureConfig()
    aggregate: AggregateConfig | None = None
    by: tuple[str, ...] = ()  # meta columns for whose values every metric is tabulated, as for domains
    controls: Annotated[tuple[AnyControl, ...], AfterValidator(check_controls)] = ()  # beside training mean and median


class Study(Config):
    """Everything that defines a run."""

    name: str
    seed: int = Field(0, ge=0)
    data: DataConfig
    preprocess: Preprocess = Preprocess()
    augment: Augment = Augment()
    encoder: AnyEncoder = TimmConfig()
    tasks: dict[str, AnyTask] = Field(min_length=1)
    covariates: Covariates | None = None
    emphasis: Emphasis | None = None
    penalties: tuple[AnyPenalty, ...] = ()
    init: InitConfig | None = None  # a bundle to start from; None: fresh parameters, or the encoder's pretrained file
    balance: AnyBalancer = FixedConfig()
    sampler: SamplerConfig = SamplerConfig()
    loader: LoaderConfig = LoaderConfig()
    optim: OptimConfig = OptimConfig()
    fit: FitConfig = FitConfig()
    views: ViewSet = "identity"  # what validation thresholds, evaluation and inference average over
    evaluation: EvaluationConfig = EvaluationConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.name or set(self.name) - set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-."):
            raise ValueError(f"name {self.name!r} becomes a folder: use letters, digits, '-', '_', '.'")
        task = self.monitored.partition(".")[0]
        if task not in self.tasks:
            raise ValueError(
                f"fit.monitor {self.monitored!r} names no task; write <task>.<metric> with one of {list(self.tasks)}"
            )
        if self.preprocess.channels not in (1, 3):
            raise ValueError(f"preprocess.channels is {self.preprocess.channels}; images have 1 (grey) or 3 (RGB)")
        check_tasks(self.tasks, self.covariates)
        self._check_balance()
        self._check_answers()
        check_penalties(self.penalties, self.tasks, self.covariates.tasks if self.covariates else None)
        if self.emphasis is not None:
            self._check_emphasis(self.emphasis)
        check_parts(self.optim.freeze, self.tasks, key="optim.freeze")
        check_parts(self.init.parts if self.init else (), self.tasks, key="init.parts")
        refuse_idle(self)
        return self

    def idle(self) -> Mapping[str, str]:
        """What one group of keys leaves unread in another."""
        if self.init is None or "encoder" not in self.init.parts or not isinstance(self.encoder, TimmConfig):
            return {}
        return dict.fromkeys(("encoder.weights", "encoder.weights_sha256"), "the encoder starts from init.bundle")

    def _check_balance(self) -> None:
        untaught = [name for name, task in self.tasks.items() if not (task.weight or task.auxiliary)]
        if untaught and isinstance(self.balance, UncertaintyConfig):  # exp(-s) 0 + s has no minimum
            raise ValueError(
                f"tasks.{untaught[0]}.weight is 0, for which balance: uncertainty would lower the variance for ever; "
                "remove the task, or balance otherwise"
            )

    def _check_answers(self) -> None:
        """No head sees its own target beside the image."""
        for name, task in self.tasks.items():
            given = self._covariates_of(name)
            if given is not None and (task.target or name) in (*given.numeric, *given.categorical):
                raise ValueError(
                    f"tasks.{name} would be given its answer, the covariate {task.target or name!r}; "
                    "list the tasks that see covariates in covariates.tasks"
                )

    def _check_emphasis(self, emphasis: Emphasis) -> None:
        unknown = [name for name in emphasis.items if name not in self.tasks]
        if unknown:
            raise ValueError(f"emphasis.items: {unknown[0]!r} is no task; the study has {list(self.tasks)}")
        if isinstance(self.balance, UncertaintyConfig) and not emphasis.even:
            raise ValueError(  # at its optimum exp(-s_t) is 1 / (w_t L_t): a constant w_t is gone
                "balance: uncertainty learns the weights of items away; set emphasis.preset: uniform without groups"
            )

    @property
    def monitored(self) -> str:
        """The validation metric that selects the model, ``<task>.<metric>``."""
        if self.fit.monitor is not None:
            return self.fit.monitor
        name, task = next(iter(self.tasks.items()))
        return f"{name}.{task.headline[0]}"

    def alone(self, name: str) -> "Study":
        """The same study with one task only, everything else equal: the control of every multi-task claim."""
        if name not in self.tasks:
            raise UserError(
                "E-CFG-TASK",
                f"the study has no task {name!r}",
                f"choose one of {', '.join(self.tasks)}",
                where="--single-task",
            )
        if isinstance(self.tasks[name], DomainAdversary):
            raise UserError(
                "E-CFG-TASK",
                f"{name!r} is an adversary: alone it would have nothing to hide the domain from",
                f"choose one of {', '.join(other for other in self.tasks if other != name) or '(no other task)'}",
                where="--single-task",
            )
        task = self.tasks[name].model_copy(update={"weight": 1.0, "auxiliary": False})
        if isinstance(task, Regression):
            task = task.model_copy(update={"sum_of": ()})
        first, _, _ = self.monitored.partition(".")
        monitor = self.fit.monitor if first == name else None
        stratify = self.data.stratify or self.stratify
        freeze = tuple(part for part in self.optim.freeze if _is_of(part, name))
        return self.model_copy(
            update={
                "init": self._init_alone(name),
                "optim": self.optim.model_copy(update={"freeze": freeze}),
                "name": f"{self.name}-only-{name}",
                "tasks": {name: task},
                "covariates": self._covariates_of(name),
                "emphasis": None,
                "penalties": (),
                "fit": self.fit.model_copy(update={"monitor": monitor}),
                "data": self.data.model_copy(update={"stratify": stratify}),
            }
        )

    def _init_alone(self, name: str) -> InitConfig | None:
        """What one task alone starts from: the same bundle, without the other tasks' heads."""
        parts = tuple(part for part in self.init.parts if _is_of(part, name)) if self.init else ()
        return self.init.model_copy(update={"parts": parts}) if self.init and parts else None

    @property
    def carried(self) -> frozenset[str]:
        """The tasks whose head comes from a bundle and stays as it is: they need no label."""
        heads = self.init.head_names() if self.init else ()
        return frozenset(name for name in heads if name in self.tasks and f"heads.{name}" in self.optim.freeze)

    def _covariates_of(self, name: str) -> Covariates | None:
        """The covariates for a study of one task, None where its head sees none."""
        if self.covariates is None or not isinstance(self.tasks[name], FUSING):
            return None
        if self.covariates.tasks is None or name in self.covariates.tasks:
            return self.covariates.model_copy(update={"tasks": None})
        return None

    @property
    def stratify(self) -> str:
        """The target column that the split and nothing else looks at."""
        name, task = next(iter(self.tasks.items()))
        return self.data.stratify or task.target or name

    def tree(self) -> dict[str, Any]:
        """Plain data without the keys that do not change what is computed."""
        tree = plain(self)
        for path in HARMLESS:
            group, _, key = path.partition(".")
            if key:
                tree[group].pop(key, None)
            else:
                tree.pop(group, None)
        for key in ("covariates", "emphasis", "penalties"):
            if not tree[key]:
                tree.pop(key)
        for task in tree["tasks"].values():
            for key, default in (("standardise", "labels"), ("sum_of", [])):
                if task.get(key) == default:
                    task.pop(key)
        if self.init is None:  # absent, these two leave a run the name that it had before they existed
            tree.pop("init")
        if not self.optim.freeze:
            tree["optim"].pop("freeze")
        return tree

    @property
    def sha256(self) -> str:
        return digest(self.tree())


def _is_of(part: str, task: str) -> bool:
    """Whether a part of the model is there when ``task`` is alone."""
    return not part.startswith("heads.") or part.split(".")[1] == task
