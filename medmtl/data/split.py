"""Train, validation and test by group: a patient or slide is in exactly one of them, or nothing trains."""

import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, model_validator
from sklearn.model_selection import StratifiedGroupKFold

from medmtl.config import Config, digest
from medmtl.data.case import Case, Manifest
from medmtl.errors import UserError
from medmtl.files import sha256
from medmtl.seeds import counted


class ColumnSplit(Config):
    """The manifest's ``split`` column. Without ``val`` rows, validation is carved from the train rows by group."""

    kind: Literal["column"] = "column"
    validation: float = Field(0.2, gt=0, lt=1)  # share of the train cases, when there are no val rows
    seed: int = 0


class GroupSplit(Config):
    """Drawn by group, stratified by label and domain; the column is ignored."""

    kind: Literal["group"] = "group"
    validation: float = Field(0.15, gt=0, lt=1)
    test: float = Field(0.15, gt=0, lt=1)
    seed: int = 0

    @model_validator(mode="after")
    def _something_is_left(self) -> Self:
        if self.validation + self.test >= 1:
            raise ValueError(f"validation ({self.validation}) and test ({self.test}) leave nothing to train on")
        return self


class FoldSplit(Config):
    """Fold ``fold`` of ``folds`` validates. Test rows of the column stay the test set; without any, the fold is it too.

    In the second case (``test: fold``) the fold is the test set and validation is carved from the rest.
    """

    kind: Literal["kfold"] = "kfold"
    folds: int = Field(5, ge=2)
    fold: int = Field(0, ge=0)
    test: Literal["column", "fold"] = "column"
    validation: float = Field(0.2, gt=0, lt=1)  # with test: fold
    seed: int = 0

    def idle(self) -> Mapping[str, str]:
        return {} if self.test == "fold" else {"validation": "with `test: column` the fold is the validation part"}


class LeaveDomainOut(Config):
    """One domain is the test set; validation is carved by group from the others.

    Rows of unknown domain train, but for those of a group that has cases of the domain: these are tested with them.
    """

    kind: Literal["leave_domain_out"] = "leave_domain_out"
    domain: str
    validation: float = Field(0.2, gt=0, lt=1)
    seed: int = 0


AnySplit = Annotated[ColumnSplit | GroupSplit | FoldSplit | LeaveDomainOut, Field(discriminator="kind")]


@dataclass(frozen=True)
class Split:
    """The cases of each part, and a digest of who is where."""

    train: tuple[Case, ...]
    val: tuple[Case, ...]
    test: tuple[Case, ...]

    def parts(self) -> dict[str, tuple[Case, ...]]:
        return {"train": self.train, "val": self.val, "test": self.test}

    @property
    def sha256(self) -> str:
        return digest(sorted((case.case_id, name) for name, cases in self.parts().items() for case in cases))


def split_cases(manifest: Manifest, config: AnySplit, *, stratify: str | None) -> Split:
    """Assign every case; ``stratify`` names the target whose classes are spread evenly, beside the domain.

    Raises E-SPLIT-LEAK when a group is in two parts, E-SPLIT-EMPTY when a part is empty, E-SPLIT-COLUMN for a case
    without a place: each names the manifest and the key.
    """
    try:
        assigned = _assigned(manifest, config, stratify)
        split = Split(**{name: tuple(replace(case, split=name) for case in part) for name, part in assigned.items()})
        check_split(split)
    except UserError as error:
        place = f"{manifest.name}, {error.where}"
        raise type(error)(error.code, error.what, error.remedy, where=place) from error
    return split


def _assigned(manifest: Manifest, config: AnySplit, stratify: str | None) -> dict[str, list[Case]]:
    """Part -> its cases."""
    cases = manifest.cases
    match config:
        case ColumnSplit():
            return _by_column(cases, config, stratify)
        case GroupSplit():
            rest, test = _carve(cases, config.test, stratify, config.seed, "test")
            train, val = _carve(rest, config.validation / (1 - config.test), stratify, config.seed, "val")
            return {"train": train, "val": val, "test": test}
        case FoldSplit():
            return _by_fold(cases, config, stratify)
        case LeaveDomainOut():
            return _by_domain(manifest, config, stratify)


def check_split(split: Split) -> None:
    """Refuse an empty part, and a group that is in two parts."""
    places: dict[str, set[str]] = defaultdict(set)
    for name, cases in split.parts().items():
        if not cases:
            raise UserError(
                "E-SPLIT-EMPTY",
                f"the {name} part has no case",
                "check the split column or the fractions",
                where="data.split",
            )
        for case in cases:
            places[case.group].add(name)
    crossing = sorted(group for group, names in places.items() if len(names) > 1)
    if crossing:
        shown = ", ".join(f"{group} ({' and '.join(sorted(places[group]))})" for group in crossing[:5])
        raise UserError(
            "E-SPLIT-LEAK",
            f"{len(crossing)} group(s) are in more than one part: {shown}",
            "give every case of a patient or slide the same split",
            where="data.split",
        )


def check_duplicates(manifest: Manifest, split: Split) -> None:
    """Refuse images with equal bytes in different parts (the same picture under two ids)."""
    seen: dict[str, tuple[str, str]] = {}
    for name, cases in split.parts().items():
        for case in cases:
            value = sha256(manifest.path(case.image))
            other = seen.setdefault(value, (name, case.case_id))
            if other[0] != name:
                raise UserError(
                    "E-SPLIT-DUP",
                    f"cases {other[1]} ({other[0]}) and {case.case_id} ({name}) are the same image",
                    "remove one of them, or give both to one part",
                    where=manifest.name,
                )


def _by_column(cases: Sequence[Case], config: ColumnSplit, stratify: str | None) -> dict[str, list[Case]]:
    homeless = [case for case in cases if not case.split]
    if homeless:
        raise UserError(
            "E-SPLIT-COLUMN",
            f"{len(homeless)} case(s) have an empty split, first {homeless[0].case_id} (row {homeless[0].row})",
            "fill the column, or use data.split.kind: group",
            where="data.split",
        )
    parts = {name: [case for case in cases if case.split == name] for name in ("train", "val", "test")}
    if not parts["val"]:
        _no_leak_between(parts["train"], parts["test"])
        parts["train"], parts["val"] = _carve(parts["train"], config.validation, stratify, config.seed, "val")
    return parts


def _by_fold(cases: Sequence[Case], config: FoldSplit, stratify: str | None) -> dict[str, list[Case]]:
    if config.fold >= config.folds:
        raise UserError(
            "E-SPLIT-FOLD", f"fold {config.fold} of {config.folds}", "folds count from 0", where="data.split.fold"
        )
    test = [case for case in cases if case.split == "test"] if config.test == "column" else []
    pool = [case for case in cases if case.split != "test"] if config.test == "column" else list(cases)
    _no_leak_between(pool, test)
    rest, fold = _fold(pool, config.folds, config.fold, stratify, config.seed, "fold")
    if config.test == "column":
        return {"train": rest, "val": fold, "test": test}
    train, val = _carve(rest, config.validation, stratify, config.seed, "val")
    return {"train": train, "val": val, "test": fold}


def _by_domain(manifest: Manifest, config: LeaveDomainOut, stratify: str | None) -> dict[str, list[Case]]:
    if config.domain not in manifest.domains:
        raise UserError(
            "E-SPLIT-DOMAIN",
            f"no case has the domain {config.domain!r}",
            f"choose one of {', '.join(manifest.domains)}",
            where="data.split.domain",
        )
    groups = {case.group for case in manifest.cases if case.domain == config.domain}
    others = {case.group: case.domain for case in manifest.cases if case.domain not in (config.domain, "")}
    crossing = sorted(groups & others.keys())
    if crossing:
        shown = ", ".join(f"{group} (also in {others[group]!r})" for group in crossing[:5])
        raise UserError(
            "E-SPLIT-LEAK",
            f"{len(crossing)} group(s) with cases of the domain {config.domain!r} have others of another one: {shown}",
            "correct the domain column, so that a patient or slide is of one domain, or use another data.split.kind",
            where="data.split",
        )
    test = [case for case in manifest.cases if case.group in groups]  # of the domain, or unknown beside one that is
    outside = [case for case in manifest.cases if case.group not in groups]
    train, val = _carve(outside, config.validation, stratify, config.seed, "val")
    return {"train": train, "val": val, "test": test}


def _no_leak_between(train: Iterable[Case], test: Iterable[Case]) -> None:
    """The check that carving needs beforehand: it moves whole groups."""
    crossing = sorted({case.group for case in train} & {case.group for case in test})
    if crossing:
        raise UserError(
            "E-SPLIT-LEAK",
            f"{len(crossing)} group(s) are in train and test: {', '.join(crossing[:5])}",
            "give every case of a patient or slide the same split",
            where="data.split",
        )


def _carve(
    cases: Sequence[Case], share: float, stratify: str | None, seed: int, purpose: str
) -> tuple[list[Case], list[Case]]:
    """(rest, about ``share`` of the cases) by whole groups: one fold of round(1 / share)."""
    return _fold(cases, max(2, round(1 / share)), 0, stratify, seed, purpose)


def _fold(
    cases: Sequence[Case],
    folds: int,
    fold: int,
    stratify: str | None,
    seed: int,
    purpose: str,
) -> tuple[list[Case], list[Case]]:
    """(others, fold number ``fold``), stratified by label and domain, independent of the order of the rows."""
    ordered = sorted(cases, key=lambda case: case.case_id)
    groups = [case.group for case in ordered]
    if len(set(groups)) < folds:
        raise UserError(
            "E-SPLIT-GROUPS",
            f"{len(set(groups))} groups cannot make {folds} folds",
            "use fewer folds or a larger share",
            where="data.split",
        )
    strata = [f"{case.targets.get(stratify, '') if stratify else ''}|{case.domain}" for case in ordered]
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=counted("split", seed, purpose) % 2**32)
    names, labels = np.unique(strata, return_inverse=True)
    labels = _merge_rare(labels, folds, len(names))
    with warnings.catch_warnings():  # a stratum too small for every fold cannot be spread better
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)
        chosen = set(list(splitter.split(np.zeros(len(ordered)), labels, groups))[fold][1].tolist())
    return (
        [case for i, case in enumerate(ordered) if i not in chosen],
        [case for i, case in enumerate(ordered) if i in chosen],
    )


def _merge_rare(labels: np.ndarray, folds: int, number: int) -> np.ndarray:
    """Strata with fewer cases than folds become one, so that the splitter has enough of each."""
    counts = np.bincount(labels, minlength=number)
    return np.where(counts[labels] >= folds, labels, number)
