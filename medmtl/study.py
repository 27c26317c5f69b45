"""One typed file per study, and what it becomes with its data: split, fitted tasks, data sets."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, model_validator

from medmtl.balance import AnyBalancer, FixedConfig, UncertaintyConfig
from medmtl.bundle import FUSING, ModelSpec, check_tasks
from medmtl.config import Config, digest, plain
from medmtl.controls.config import AnyControl, check_controls
from medmtl.data.augment import Augment
from medmtl.data.case import Case, Manifest, read_manifest
from medmtl.data.covariates import Covariates
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
from medmtl.finetune import InitConfig, check_parts, inherited, read_source
from medmtl.models.encoder import TimmConfig
from medmtl.models.encoders import AnyEncoder
from medmtl.models.views import ViewSet
from medmtl.tasks import AnyTask
from medmtl.tasks.annotators import Annotators
from medmtl.tasks.classification import Classification
from medmtl.tasks.domain import Domain
from medmtl.tasks.emphasis import Emphasis
from medmtl.tasks.ordinal import Ordinal
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
        check_tasks(self.tasks, self.covariates)
        check_penalties(self.penalties, self.tasks, self.covariates.tasks if self.covariates else None)
        if self.emphasis is not None:
            self._check_emphasis(self.emphasis)
        check_parts(self.optim.freeze, self.tasks, key="optim.freeze")
        check_parts(self.init.parts if self.init else (), self.tasks, key="init.parts")
        return self

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


@dataclass(frozen=True)
class Prepared:
    """A study with its data: the manifest, who is where, and the specification fitted on the training labels."""

    study: Study
    manifest: Manifest
    split: Split
    spec: ModelSpec
    domains: tuple[str, ...]  # of the training part
    init_id: str | None = None  # of the bundle that it starts from

    @property
    def targets(self) -> dict[str, Target]:
        """Target column -> reader; the domain is no column."""
        return {
            task.target or name: task.reader() for name, task in self.spec.tasks.items() if not isinstance(task, Domain)
        }

    def dataset(self, cases: tuple[Case, ...], *, augment: bool = False) -> CaseDataset:
        """The samples of some cases, augmented for training or plain."""
        emphasis = self.study.emphasis
        return CaseDataset(
            cases,
            self.manifest.root,
            self.targets,
            self.domains,
            self.spec.preprocess,
            augment=self.study.augment if augment else None,
            seed=self.study.seed,
            cache=self.study.loader.cache,
            cache_gib=self.study.loader.cache_gib,
            weigh=tuple(dict.fromkeys(task.weigh for task in self.spec.tasks.values() if task.weigh is not None)),
            covariates=self.spec.covariates,
            strata=None if emphasis is None or emphasis.by is None else (emphasis.by, emphasis.strata),
        )


def prepare(study: Study) -> Prepared:
    """Read the manifest, split it, and fit the tasks on the training labels. Nothing of val or test is looked at."""
    manifest = read_manifest(Path(study.data.manifest))
    named = _named(study, manifest)
    _check_columns(named, manifest)
    _check_weights(named, manifest)
    _check_groups(named, manifest)
    if named.covariates is not None:
        named.covariates.check(manifest.cases)
    split = split_cases(manifest, study.data.split, stratify=study.stratify)
    if study.data.check_duplicates:
        check_duplicates(manifest, split)
    domains = tuple(sorted({case.domain for case in split.train} - {""}))
    source, init_id = read_source(study.init) if study.init else (None, None)
    tasks = {}
    for name, task in named.tasks.items():
        labelled = name not in study.carried or _labelled(name, task, split.train)
        fitted = _fitted(study, name, task, split, manifest, domains) if labelled else task
        heads = study.init.head_names() if study.init else ()
        tasks[name] = inherited(name, fitted, source, labelled=labelled) if source and name in heads else fitted
    covariates = None if study.covariates is None else study.covariates.fit(split.train)
    if source is not None and study.init is not None and set(study.init.head_names()) & set(source.fused):
        covariates = source.covariates  # on the scale that the head which is started from has learned
    spec = ModelSpec(
        preprocess=study.preprocess, encoder=study.encoder, tasks=tasks, covariates=covariates, views=study.views
    )
    return Prepared(study, manifest, split, spec, domains, init_id)


def _labelled(name: str, task: AnyTask, cases: tuple[Case, ...]) -> bool:
    """Whether any of the cases has a label of the task."""
    if isinstance(task, Domain):
        return any(case.domain for case in cases)
    return any(column in case.targets for case in cases for column in task.columns(name))


def _named(study: Study, manifest: Manifest) -> Study:
    """The study with the annotators of every task that leaves them open: those that the manifest's columns name."""
    tasks = {
        name: task.named(name, manifest.targets) if isinstance(task, Annotators) and name not in study.carried else task
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
        if absent is not None and name not in study.carried:
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


def _check_groups(study: Study, manifest: Manifest) -> None:
    """A group that no case is of is a misspelt one."""
    if study.emphasis is None or study.emphasis.by is None:
        return
    by = study.emphasis.by
    found = {case.meta[by] for case in manifest.cases if by in case.meta}
    missing = [name for name in study.emphasis.strata if name not in found]
    if missing:
        raise UserError(
            "E-CFG-EMPHASIS",
            f"no case has {missing[0]!r} in meta.{by}, which has {', '.join(sorted(found)[:12]) or 'no value'}",
            "correct emphasis.groups or emphasis.by",
            where=manifest.name,
        )


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
