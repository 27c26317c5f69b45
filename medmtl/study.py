"""One typed file per study, and what it becomes with its data: split, fitted tasks, data sets."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from medmtl.balance import AnyBalancer, FixedConfig
from medmtl.bundle import ModelSpec
from medmtl.config import Config, digest, plain
from medmtl.data.augment import Augment
from medmtl.data.case import Case, Manifest, read_manifest
from medmtl.data.loader import CaseDataset, LoaderConfig, case_weight, labels
from medmtl.data.preprocess import Preprocess
from medmtl.data.sampler import SamplerConfig
from medmtl.data.split import AnySplit, ColumnSplit, Split, check_duplicates, split_cases
from medmtl.data.target import Target
from medmtl.engine.callbacks import TrackingConfig
from medmtl.engine.fit import FitConfig
from medmtl.engine.optim import OptimConfig
from medmtl.errors import UserError
from medmtl.evaluation.aggregate import AggregateConfig
from medmtl.evaluation.failures import FailureConfig
from medmtl.models.encoder import TimmConfig
from medmtl.models.encoders import AnyEncoder
from medmtl.models.views import ViewSet
from medmtl.tasks import AnyTask
from medmtl.tasks.annotators import Annotators
from medmtl.tasks.classification import Classification
from medmtl.tasks.domain import Domain
from medmtl.tasks.ordinal import Ordinal

HARMLESS = (
    "loader.workers",
    "loader.cache",
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


class Study(Config):
    """Everything that defines a run."""

    name: str
    seed: int = Field(0, ge=0)
    data: DataConfig
    preprocess: Preprocess = Preprocess()
    augment: Augment = Augment()
    encoder: AnyEncoder = TimmConfig()
    tasks: dict[str, AnyTask] = Field(min_length=1)
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
        return self

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
        task = self.tasks[name].model_copy(update={"weight": 1.0, "auxiliary": False})
        first, _, _ = self.monitored.partition(".")
        monitor = self.fit.monitor if first == name else None
        stratify = self.data.stratify or self.stratify
        return self.model_copy(
            update={
                "name": f"{self.name}-only-{name}",
                "tasks": {name: task},
                "fit": self.fit.model_copy(update={"monitor": monitor}),
                "data": self.data.model_copy(update={"stratify": stratify}),
            }
        )

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
        return tree

    @property
    def sha256(self) -> str:
        return digest(self.tree())


@dataclass(frozen=True)
class Prepared:
    """A study with its data: the manifest, who is where, and the specification fitted on the training labels."""

    study: Study
    manifest: Manifest
    split: Split
    spec: ModelSpec
    domains: tuple[str, ...]  # of the training part

    @property
    def targets(self) -> dict[str, Target]:
        """Target column -> reader; the domain is no column."""
        return {
            task.target or name: task.reader() for name, task in self.spec.tasks.items() if not isinstance(task, Domain)
        }

    def dataset(self, cases: tuple[Case, ...], *, augment: bool = False) -> CaseDataset:
        """The samples of some cases, augmented for training or plain."""
        return CaseDataset(
            cases,
            self.manifest.root,
            self.targets,
            self.domains,
            self.spec.preprocess,
            augment=self.study.augment if augment else None,
            seed=self.study.seed,
            cache=self.study.loader.cache,
            weigh=tuple(dict.fromkeys(task.weigh for task in self.spec.tasks.values() if task.weigh is not None)),
        )


def prepare(study: Study) -> Prepared:
    """Read the manifest, split it, and fit the tasks on the training labels. Nothing of val or test is looked at."""
    manifest = read_manifest(Path(study.data.manifest))
    named = _named(study, manifest)
    _check_columns(named, manifest)
    _check_weights(named, manifest)
    split = split_cases(manifest, study.data.split, stratify=study.stratify)
    if study.data.check_duplicates:
        check_duplicates(manifest, split)
    domains = tuple(sorted({case.domain for case in split.train} - {""}))
    tasks = {name: _fitted(study, name, task, split, manifest, domains) for name, task in named.tasks.items()}
    spec = ModelSpec(preprocess=study.preprocess, encoder=study.encoder, tasks=tasks, views=study.views)
    return Prepared(study, manifest, split, spec, domains)


def _named(study: Study, manifest: Manifest) -> Study:
    """The study with the annotators of every task that leaves them open: those that the manifest's columns name."""
    tasks = {
        name: task.named(name, manifest.targets) if isinstance(task, Annotators) else task
        for name, task in study.tasks.items()
    }
    return study.model_copy(update={"tasks": tasks})


def _check_columns(study: Study, manifest: Manifest) -> None:
    readers: dict[str, Target] = {}
    for name, task in study.tasks.items():
        column = task.target or name
        if isinstance(task, Domain):
            continue
        if column == "domain":  # in a batch, "domain" is the manifest's domain column
            raise UserError(
                "E-CFG-TARGET",
                f"task {name!r} reads target.domain, which a batch holds the domain under",
                "use kind: domain, or rename the column",
                where=f"tasks.{name}",
            )
        if readers.setdefault(column, task.reader()) != task.reader():
            raise UserError(
                "E-CFG-TARGET",
                f"task {name!r} reads target.{column} otherwise than another task does",
                "give both the same classes in the same order, or the same low and high",
                where=f"tasks.{name}",
            )
        absent = next((column for column in task.columns(name) if column not in manifest.targets), None)
        if absent is not None:
            raise UserError(
                "E-CFG-TARGET",
                f"task {name!r} needs column target.{absent}, the manifest has "
                f"{', '.join('target.' + t for t in manifest.targets) or 'no target'}",
                f"set tasks.{name}.target or add the column",
                where=manifest.name,
            )
    for key, wanted in (("sampler.target", study.sampler.target), ("data.stratify", study.data.stratify)):
        if wanted is not None and wanted not in manifest.targets:
            raise UserError(
                "E-CFG-TARGET",
                f"{key} names {wanted!r}, the manifest has {', '.join(manifest.targets) or 'no target'}",
                "write one of these",
                where=manifest.name,
            )


def _check_weights(study: Study, manifest: Manifest) -> None:
    """Every case's weight is read once, so that a bad one does not end an epoch."""
    for name, task in study.tasks.items():
        if task.weigh is None:
            continue
        if not any(task.weigh in case.meta for case in manifest.cases):
            raise UserError(
                "E-CFG-WEIGH",
                f"task {name!r} weighs its cases by meta.{task.weigh}, which no case has",
                f"correct tasks.{name}.weigh or add the column",
                where=manifest.name,
            )
        for case in manifest.cases:
            case_weight(case, task.weigh)


def _fitted(
    study: Study, name: str, task: AnyTask, split: Split, manifest: Manifest, domains: tuple[str, ...]
) -> AnyTask:
    """The task resolved on training labels; refused where it could not be learned or selected."""
    if isinstance(task, Domain):
        if len(domains) < 2:
            raise UserError(
                "E-CFG-DOMAIN",
                f"the training part has {len(domains)} domain(s), task {name!r} needs two",
                "fill the manifest's domain column or remove the task",
                where=f"tasks.{name}",
            )
        known = task.model_copy(update={"classes": domains})
        return known.fit([domains.index(case.domain) for case in split.train if case.domain])
    column, reader = task.target or name, task.reader()
    found = labels(split.train, column, reader, manifest.root, volumes=study.preprocess.volume is not None)
    if not found:
        raise UserError(
            "E-CFG-LABELS",
            f"no training case has a label for task {name!r}",
            "add labels or remove the task",
            where=f"{manifest.name} target.{column}",
        )
    if isinstance(task, Classification) and task.binary and len(set(found)) < 2:
        raise UserError(
            "E-CFG-CLASS",
            f"every training label of task {name!r} is {task.classes[int(found[0])]!r}",
            "label cases of the other class, or change data.split",
            where=f"{manifest.name} target.{column}",
        )
    if isinstance(task, Ordinal) and len(set(found)) < 2:
        raise UserError(
            "E-CFG-CLASS",
            f"every training label of task {name!r} is the level {task.levels[int(found[0])]!r}",
            "label cases of other levels, or change data.split",
            where=f"{manifest.name} target.{column}",
        )
    if isinstance(task, Annotators):
        task.check_annotators({target for case in split.train for target in case.targets}, name)
    return task.fit(found)


def label_counts(prepared: Prepared) -> Mapping[str, Mapping[str, int]]:
    """Per task, how many cases of each part are labelled: printed before training."""
    return {
        name: {
            part: sum(
                (bool(case.domain) if isinstance(task, Domain) else any(c in case.targets for c in task.columns(name)))
                for case in cases
            )
            for part, cases in prepared.split.parts().items()
        }
        for name, task in prepared.spec.tasks.items()
    }
