"""What a study becomes with its data: split, fitted tasks, data sets; refused where the two do not fit."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from medmtl.bundle import ModelSpec
from medmtl.data.case import Case, Manifest, read_manifest
from medmtl.data.check import check_cases
from medmtl.data.loader import CaseDataset, case_weight, labels
from medmtl.data.split import Split, check_duplicates, split_cases
from medmtl.data.target import Target
from medmtl.errors import UserError
from medmtl.finetune import inherited, read_source
from medmtl.study import Study
from medmtl.tasks import AnyTask
from medmtl.tasks.annotators import Annotators
from medmtl.tasks.classification import Classification
from medmtl.tasks.domain import Domain
from medmtl.tasks.ordinal import Ordinal


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
        return _readers(self.spec.tasks)

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
    """Read the manifest, split it, and fit the tasks on the training labels.

    Of val and test nothing is looked at but whether it can be read: a bad label, a mask of another size or with other
    classes, and an image whose header is bad, or of a size or colour that ``preprocess`` does not take, are refused
    before anything trains, with those of the training part.
    """
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
    found = [case for part in split.parts().values() for case in part]
    check_cases(
        sorted(found, key=lambda case: case.row),
        _readers(named.tasks),
        manifest.root,
        study.preprocess,
        name=manifest.name,
    )
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


def _readers(tasks: Mapping[str, AnyTask]) -> dict[str, Target]:
    return {task.target or name: task.reader() for name, task in tasks.items() if not isinstance(task, Domain)}


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
    parts = prepared.split.parts()
    return {
        name: {part: sum(_labelled(name, task, (case,)) for case in cases) for part, cases in parts.items()}
        for name, task in prepared.spec.tasks.items()
    }


def unlabelled(prepared: Prepared) -> list[Case]:
    """The cases without a label of any task, those of the domain left aside: they teach nothing and test nothing."""
    tasks = [(name, task) for name, task in prepared.spec.tasks.items() if not isinstance(task, Domain)]
    cases = [case for part in prepared.split.parts().values() for case in part]
    return [case for case in cases if not any(_labelled(name, task, (case,)) for name, task in tasks)]
