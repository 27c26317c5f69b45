"""Nobody is in two parts, everybody is in one, and who is where depends on the cases and the seed alone."""

from collections import Counter
from dataclasses import replace

import pytest
from laws import cases, manifest, refuses, written

from medmtl.data.split import (
    ColumnSplit,
    FoldSplit,
    GroupSplit,
    LeaveDomainOut,
    check_duplicates,
    split_cases,
)

DRAWN = {
    "group": GroupSplit(validation=0.25, test=0.25),
    "kfold": FoldSplit(folds=4, test="fold", validation=0.25),
    "leave_domain_out": LeaveDomainOut(domain="d1", validation=0.25),
}


def _split(tmp_path, config, found=None, stratify="grade"):
    return split_cases(manifest(tmp_path, found or cases()), config, stratify=stratify)


def _ids(split):
    return {name: sorted(case.case_id for case in part) for name, part in split.parts().items()}


def _with_column(found, parts=("train", "train", "val", "test")):
    return [replace(case, split=parts[int(case.group[1:]) % len(parts)]) for case in found]


@pytest.mark.parametrize("config", DRAWN.values(), ids=DRAWN)
def test_every_case_is_in_one_part_and_every_group_too(tmp_path, config):
    split = _split(tmp_path, config)
    placed = [case.case_id for part in split.parts().values() for case in part]
    assert sorted(placed) == sorted(case.case_id for case in cases())
    groups = [{case.group for case in part} for part in split.parts().values()]
    assert all(groups) and sum(map(len, groups)) == len(set().union(*groups))
    assert all(case.split == name for name, part in split.parts().items() for case in part)


@pytest.mark.parametrize("config", DRAWN.values(), ids=DRAWN)
def test_a_split_repeats_ignores_the_order_of_rows_and_follows_the_seed(tmp_path, config):
    first = _split(tmp_path, config)
    assert _split(tmp_path, config).sha256 == first.sha256
    turned = _split(tmp_path, config, cases()[::-1])
    assert _ids(turned) == _ids(first)
    assert turned.train == first.train and turned.val == first.val  # in order too: an epoch draws places in it
    seeds = {_split(tmp_path, config.model_copy(update={"seed": seed})).sha256 for seed in range(4)}
    assert len(seeds) > 1


def test_folds_cover_every_case_of_the_pool_once(tmp_path):
    found = _with_column(cases(16), ("train", "train", "train", "test"))
    held = [_split(tmp_path, FoldSplit(folds=4, fold=k), found) for k in range(4)]
    pool = sorted(case.case_id for case in found if case.split != "test")
    assert sorted(case.case_id for split in held for case in split.val) == pool
    assert all({c.case_id for c in split.test} == {c.case_id for c in found if c.split == "test"} for split in held)
    tested = [_split(tmp_path, FoldSplit(folds=4, fold=k, test="fold"), cases()) for k in range(4)]
    assert sorted(case.case_id for split in tested for case in split.test) == sorted(c.case_id for c in cases())
    refuses("E-SPLIT-FOLD", lambda: _split(tmp_path, FoldSplit(folds=4, fold=4)))


def test_one_domain_is_left_out_whole_and_unknown_domains_train(tmp_path):
    found = [replace(case, domain="") if case.group == "g00" else case for case in cases()]
    split = _split(tmp_path, LeaveDomainOut(domain="d1", validation=0.25), found)
    assert {case.domain for case in split.test} == {"d1"}
    assert "d1" not in {case.domain for part in (split.train, split.val) for case in part}
    assert {case.group for case in split.test} == {c.group for c in found if c.domain == "d1"}
    refuses("E-SPLIT-DOMAIN", lambda: _split(tmp_path, LeaveDomainOut(domain="d9")), says="d0, d1, d2")


def test_unknown_domains_beside_the_one_left_out_are_tested_with_it(tmp_path):
    """Else their group would be on both sides; every other case stays where it was."""
    before = _split(tmp_path, LeaveDomainOut(domain="d1", validation=0.25))
    blank = {case.case_id for case in before.test[::2]}  # one of two of each group
    assert {case.group for case in before.test} == {c.group for c in before.test if c.case_id not in blank}
    found = [replace(case, domain="") if case.case_id in blank else case for case in cases()]
    split = _split(tmp_path, LeaveDomainOut(domain="d1", validation=0.25), found)
    assert _ids(split) == _ids(before) and split.sha256 == before.sha256
    assert [case.case_id for case in split.test] == [case.case_id for case in before.test]


def test_a_group_of_two_known_domains_is_refused_where_one_of_them_is_left_out(tmp_path):
    found = cases()
    found[0] = replace(found[0], domain="d1")  # g00 is of d0
    out = LeaveDomainOut(domain="d1", validation=0.25)
    message = refuses("E-SPLIT-LEAK", lambda: _split(tmp_path, out, found), says="g00 (also in 'd0')")
    assert "correct the domain column" in message
    split = _split(tmp_path, LeaveDomainOut(domain="d2", validation=0.25), found)  # on one side all the same
    assert {case.group for case in split.test} == {case.group for case in found if case.domain == "d2"}


def test_an_error_names_the_manifest_and_the_key(tmp_path):
    """A manifest of another name, so that it is this one's."""
    parts = {"E-SPLIT-LEAK": ("train", "train", "val", "test"), "E-SPLIT-EMPTY": ("train", "val", "val", "val")}
    for code, column in parts.items():
        found = _with_column(cases(), column)
        if code == "E-SPLIT-LEAK":
            found[0] = replace(found[0], split="test")
        named = replace(manifest(tmp_path, found), name="mine.csv")
        refuses(
            code, lambda named=named: split_cases(named, ColumnSplit(), stratify=None), says="mine.csv, data.split: "
        )
    wrong = replace(manifest(tmp_path, cases()), name="mine.csv")
    config = LeaveDomainOut(domain="d9")
    refuses("E-SPLIT-DOMAIN", lambda: split_cases(wrong, config, stratify=None), says="mine.csv, data.split.domain: ")


def test_classes_are_spread_evenly(tmp_path):
    found = [replace(c, targets={"grade": "rare" if int(c.group[1:]) % 4 == 0 else "common"}) for c in cases(48, 2, 1)]
    split = _split(tmp_path, GroupSplit(validation=0.25, test=0.25), found)
    for part in split.parts().values():
        share = Counter(case.targets["grade"] for case in part)["rare"] / len(part)
        assert share == pytest.approx(0.25, abs=0.05)
    sizes = [len(part) / len(found) for part in split.parts().values()]
    assert sizes == pytest.approx([0.5, 0.25, 0.25], abs=0.1)


def test_a_class_too_small_for_every_fold_is_no_reason_to_warn(tmp_path, recwarn):
    found = [replace(c, targets={"grade": "rare" if c.group == "g03" else "common"}) for c in cases(48, 2, 1)]
    split = _split(tmp_path, FoldSplit(folds=5, test="fold", validation=0.25), found)
    assert sum(map(len, split.parts().values())) == len(found)
    assert not [warning for warning in recwarn if "populated" in str(warning.message)]


def test_the_column_is_obeyed_and_validation_carved_where_it_has_none(tmp_path):
    found = _with_column(cases())
    assert _ids(_split(tmp_path, ColumnSplit(), found)) == {
        part: sorted(c.case_id for c in found if c.split == part) for part in ("train", "val", "test")
    }
    carved = _split(tmp_path, ColumnSplit(validation=0.3), _with_column(cases(), ("train", "train", "train", "test")))
    assert carved.val and not {c.group for c in carved.val} & {c.group for c in carved.train}
    homeless = [*found[:-1], replace(found[-1], split="")]
    refuses("E-SPLIT-COLUMN", lambda: _split(tmp_path, ColumnSplit(), homeless), says=found[-1].case_id)


@pytest.mark.parametrize("config", [ColumnSplit(), ColumnSplit(validation=0.3), FoldSplit(folds=2)])
@pytest.mark.parametrize("carve", [False, True])
def test_a_group_in_two_parts_is_refused_by_name(tmp_path, config, carve):
    parts = ("train", "train", "train", "test") if carve else ("train", "train", "val", "test")
    found = _with_column(cases(), parts)
    found[0] = replace(found[0], split="test")  # its group g00 trains
    refuses("E-SPLIT-LEAK", lambda: _split(tmp_path, config, found), says="g00")


def test_an_empty_part_and_too_few_groups_are_refused(tmp_path):
    refuses(
        "E-SPLIT-EMPTY", lambda: _split(tmp_path, ColumnSplit(), _with_column(cases(), ("train", "val"))), says="test"
    )
    refuses("E-SPLIT-GROUPS", lambda: _split(tmp_path, FoldSplit(folds=13, test="fold")))


def test_one_picture_under_two_ids_may_not_cross_parts(tmp_path):
    found = _with_column(cases(4, 2))
    study = written(tmp_path, found)
    split = split_cases(study, ColumnSplit(), stratify=None)
    check_duplicates(study, split)
    train, test = split.train[0], split.test[0]
    study.path(split.train[1].image).write_bytes(study.path(train.image).read_bytes())  # within a part: allowed
    check_duplicates(study, split)
    study.path(test.image).write_bytes(study.path(train.image).read_bytes())
    refuses("E-SPLIT-DUP", lambda: check_duplicates(study, split), says=test.case_id)
