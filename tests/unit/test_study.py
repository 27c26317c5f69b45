"""A study with its data: fitted on training labels alone, and refused where it could not be learned."""

from dataclasses import replace

import pytest
from laws import cases, refuses, written

from medmtl.assembly import build_trainer
from medmtl.config import override, plain, validate
from medmtl.data.case import write_manifest
from medmtl.engine.callbacks import Callbacks
from medmtl.experiment import _say_study
from medmtl.prepared import label_counts, prepare, unlabelled
from medmtl.runs import RunFolder
from medmtl.study import HARMLESS, Study

PARTS = ("train", "train", "val", "test")


def _cases():
    found = []
    for case in cases(12, 2, 2):
        group = int(case.group[1:])
        targets = {**case.targets, "size": str(group / 2)}
        found.append(replace(case, split=PARTS[group % 4], domain=f"d{group % 3 % 2}", targets=targets))
    return found


@pytest.fixture
def tree(tmp_path):
    written(tmp_path, _cases())
    return {
        "name": "tiny",
        "data": {"manifest": str(tmp_path / "manifest.csv")},
        "preprocess": {"window": [12, 12]},
        "encoder": {"name": "test_efficientnet"},
        "tasks": {
            "grade": {"kind": "classification", "classes": ["a", "b"], "class_weights": "balanced"},
            "size": {"kind": "regression", "low": 0, "high": 10},
            "site": {"kind": "domain_adversary"},
        },
    }


def _study(tree, *assignments):
    return validate(Study, override(tree, assignments), where="test")


def test_tasks_are_fitted_on_the_training_part_alone(tree, tmp_path):
    prepared = prepare(_study(tree))
    train = prepared.split.train
    grades = [case.targets["grade"] for case in train if "grade" in case.targets]
    sizes = [float(case.targets["size"]) for case in train]
    task = prepared.spec.tasks
    assert task["grade"].prior == pytest.approx([grades.count("a") / len(grades), grades.count("b") / len(grades)])
    assert task["size"].centre == pytest.approx(sum(sizes) / len(sizes))
    assert task["site"].classes == prepared.domains == ("d0", "d1")
    for case in _cases():  # nothing of val and test is looked at
        if case.split != "train":
            changed = [replace(c, targets={**c.targets, "size": "9.9"}) if c.split != "train" else c for c in _cases()]
    write_manifest(tmp_path / "manifest.csv", changed)
    assert prepare(_study(tree)).spec == prepared.spec
    assert prepare(_study(tree)).manifest.sha256 != prepared.manifest.sha256


def test_label_counts_and_data_sets(tree):
    prepared = prepare(_study(tree))
    counts = label_counts(prepared)
    assert counts["site"] == {name: len(part) for name, part in prepared.split.parts().items()}
    assert counts["grade"]["train"] == sum("grade" in case.targets for case in prepared.split.train)
    assert set(prepared.targets) == {"grade", "size"}
    dataset = prepared.dataset(prepared.split.val)
    assert len(dataset) == len(prepared.split.val) and dataset.augment is None
    assert prepared.dataset(prepared.split.train, augment=True).augment is not None


def test_a_case_without_any_label_is_named(tree, tmp_path):
    assert unlabelled(prepare(_study(tree))) == []
    bare = [replace(case, targets={}) if number in (3, 5) else case for number, case in enumerate(_cases())]
    write_manifest(tmp_path / "manifest.csv", bare)
    prepared, said = prepare(_study(tree)), []
    assert sorted(case.row for case in unlabelled(prepared)) == [5, 7]
    _say_study(prepared, RunFolder(tmp_path / "run"), said.append)
    assert "warning: cases without a label of any task: 2, the first is c" in said[-1] and "(manifest row" in said[-1]


@pytest.mark.parametrize(
    ("assignments", "code", "says"),
    [
        (["tasks.grade.target=grad"], "E-CFG-TARGET", "target.grad"),
        (["tasks.grade.classes=[a]"], "E-CFG", "two or more"),
        (["tasks.size.high=4"], "E-TGT-RANGE", "row"),
        (["tasks.grade.classes=[a, c]"], "E-TGT-CLASS", "row"),
        (["sampler={balance: label, target: grad}"], "E-CFG-TARGET", "sampler.target"),
        (["data.stratify=grad"], "E-CFG-TARGET", "data.stratify"),
        (["tasks.again={kind: classification, target: grade, classes: [b, a]}"], "E-CFG-TARGET", "again"),
        (["tasks.again={kind: classification, target: domain, classes: [d0, d1]}"], "E-CFG-TARGET", "again"),
        (
            [
                "data.split={kind: leave_domain_out, domain: d0, validation: 0.3}",
                "tasks={size: {kind: regression, low: 0, high: 10}, site: {kind: domain_adversary}}",
            ],
            "E-CFG-DOMAIN",
            "site",
        ),
        (["fit.monitor=nobody.auroc"], "E-CFG", "fit.monitor"),
        (["name=a/b"], "E-CFG", "folder"),
        (["tasks.size.weigh=pairs"], "E-CFG-WEIGH", "meta.pairs"),
        (["data.manifest=absent.csv"], "E-MAN-FILE", "absent.csv"),
    ],
)
def test_a_study_that_cannot_be_learned_is_refused(tree, assignments, code, says):
    refuses(code, lambda: prepare(_study(tree, *assignments)), says=says)


@pytest.mark.parametrize("cell", ["0", "-1", "nan", "inf", "three"])
def test_a_weight_that_is_none_is_named_with_its_row_whatever_its_part(tree, tmp_path, cell):
    found = [replace(case, meta={"pairs": "2"}) for case in _cases()]
    bad = next(i for i, case in enumerate(found) if case.split == "test")
    found[bad] = replace(found[bad], meta={"pairs": cell})
    write_manifest(tmp_path / "manifest.csv", found)
    assert prepare(_study(tree)).dataset(()).weigh == ()  # nobody weighs by it
    says = f"manifest row {bad + 2}, case {found[bad].case_id}"
    refuses("E-TGT-WEIGHT", lambda: prepare(_study(tree, "tasks.size.weigh=pairs")), says=says)


def test_an_empty_weight_is_one_and_what_is_fitted_counts_every_case_once(tree, tmp_path):
    found = [replace(case, meta={"pairs": str(i / 2)} if i % 2 else {}) for i, case in enumerate(_cases())]
    write_manifest(tmp_path / "manifest.csv", found)
    plain, weighed = (
        prepare(_study(tree, *some)) for some in ((), ("tasks.size.weigh=pairs", "tasks.site.weigh=pairs"))
    )
    dataset = weighed.dataset(weighed.split.train)
    expected = {case.case_id: i / 2 if i % 2 else 1.0 for i, case in enumerate(found)}
    assert dataset.weigh == ("pairs",)
    assert [dataset[i].weights for i in range(len(dataset))] == [
        {"pairs": expected[case.case_id]} for case in weighed.split.train
    ]
    assert weighed.spec.tasks["size"] == plain.spec.tasks["size"].model_copy(update={"weigh": "pairs"})


def test_two_tasks_may_read_one_column_alike(tree):
    prepared = prepare(_study(tree, "tasks.again={kind: classification, target: grade, classes: [a, b]}"))
    assert set(prepared.targets) == {"grade", "size"}


def test_a_task_without_a_training_label_is_refused(tree, tmp_path):
    bare = [replace(c, targets={"grade": "a", "size": "1"} if c.split != "train" else {"size": "1"}) for c in _cases()]
    write_manifest(tmp_path / "manifest.csv", bare)
    refuses("E-CFG-LABELS", lambda: prepare(_study(tree)), says="grade")


def test_duplicates_across_parts_are_refused_unless_allowed(tree, tmp_path):
    prepared = prepare(_study(tree))
    train, test = prepared.split.train[0], prepared.split.test[0]
    (tmp_path / test.image).write_bytes((tmp_path / train.image).read_bytes())
    refuses("E-SPLIT-DUP", lambda: prepare(_study(tree)), says=train.case_id)
    prepare(_study(tree, "data.check_duplicates=false"))


def test_the_digest_ignores_what_changes_no_result(tree):
    first = _study(tree)
    assert _study(tree, "loader.workers=0", "loader.cache=none", "fit.device=cpu", "tracking.enabled=false",
                  "fit.checkpoint_minutes=1", "evaluation.gallery=0").sha256 == first.sha256  # fmt: skip
    for assignment in ("seed=1", "loader.batch_size=8", "optim.epochs=3", "tasks.grade.weight=2", "views=flips"):
        assert _study(tree, assignment).sha256 != first.sha256, assignment
    for path in HARMLESS:  # a misspelt one would be ignored in silence
        node = plain(first)
        for key in path.split("."):
            assert key in node, path
            node = node[key]


def test_a_task_alone_is_the_same_study_with_one_task(tree):
    study = _study(tree, "fit.monitor=grade.auroc", "tasks.size.weight=0.3")
    alone = study.alone("size")
    assert list(alone.tasks) == ["size"] and alone.tasks["size"].weight == 1.0 and not alone.tasks["size"].auxiliary
    assert (alone.name, alone.monitored, alone.stratify) == ("tiny-only-size", "size.mae", "grade")
    assert study.alone("grade").monitored == "grade.auroc"
    assert [c.case_id for c in prepare(alone).split.train] == [c.case_id for c in prepare(study).split.train]
    refuses("E-CFG-TASK", lambda: study.alone("x"), says="grade, size, site")
    refuses("E-CFG-TASK", lambda: study.alone("site"), says="adversary")  # its settings could not be read back


def test_the_monitor_defaults_to_the_first_headline(tree):
    assert _study(tree).monitored == "grade.auroc"


def test_a_binary_task_with_one_class_in_training_is_refused(tree, tmp_path):
    changed = [replace(c, targets={**c.targets, "grade": "a"}) if c.split == "train" else c for c in _cases()]
    write_manifest(tmp_path / "manifest.csv", changed)
    refuses("E-CFG-CLASS", lambda: prepare(_study(tree)), says="'a'")


def test_fractions_that_leave_no_training_case_are_refused(tree):
    split = "data.split={kind: group, validation: 0.5, test: 0.5}"
    refuses("E-CFG", lambda: _study(tree, split), says="leave nothing to train on")


def test_a_monitor_that_its_task_does_not_have_is_refused_before_training(tree, tmp_path):
    study = _study(tree, "fit.monitor=grade.mae", "loader.batch_size=2", "loader.workers=0")
    run = RunFolder(tmp_path / "run")
    refuses("E-CFG-MONITOR", lambda: build_trainer(prepare(study), run, {}, Callbacks(), print), says="grade.auroc")
