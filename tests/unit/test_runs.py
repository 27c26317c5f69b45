"""The folder of a run: one command at a time, and nothing of a command that was refused."""

from dataclasses import replace
from pathlib import Path

import pytest
from filelock import FileLock
from laws import cases, refuses, written

from medmtl.config import validate
from medmtl.errors import UserError
from medmtl.experiment import train
from medmtl.runs import RunFolder
from medmtl.study import Study


def _refused(run: RunFolder) -> None:
    with pytest.raises(UserError, match="E-X"), run.locked():
        raise UserError("E-X", "something is wrong", "mend it")


def test_a_refused_training_leaves_no_folder(tmp_path: Path) -> None:
    parts = ("train", "train", "val", "test")
    found = [replace(c, split=parts[i // 2 % 4], targets={"size": "12"}) for i, c in enumerate(cases(12, 2))]
    written(tmp_path, found)
    tree = {"name": "tiny", "data": {"manifest": str(tmp_path / "manifest.csv")}, "preprocess": {"window": [12, 12]},
            "encoder": {"name": "test_efficientnet"}, "tracking": {"enabled": False},
            "tasks": {"size": {"kind": "regression", "low": 0, "high": 10}}}  # fmt: skip
    study = validate(Study, tree, where="test")
    refuses("E-TGT-RANGE", lambda: train(study, runs=tmp_path / "runs", say=lambda text: None))
    assert not list((tmp_path / "runs").iterdir())


def test_a_folder_that_was_there_or_holds_something_stays(tmp_path: Path) -> None:
    (tmp_path / "before").mkdir()
    _refused(RunFolder(tmp_path / "before"))
    assert (tmp_path / "before").is_dir()
    run = RunFolder(tmp_path / "begun")
    with run.locked():
        run.study.write_text("name: x\n")
    _refused(run)
    assert run.study.read_text() == "name: x\n"


def test_the_folder_of_another_command_stays_with_its_lock(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    with run.locked():
        with pytest.raises(UserError, match="E-RUN-LOCK"), run.locked():
            pytest.fail("two commands have one folder")
        assert (run.path / ".lock").is_file()
    assert not run.path.exists()


def test_a_command_that_comes_while_another_one_is_refused_has_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes the lock between its removal and the folder's."""
    run, others = RunFolder(tmp_path / "run"), []
    rmdir = Path.rmdir

    def late(path: Path) -> None:
        others.append(FileLock(path / ".lock", timeout=0))
        others[0].acquire()
        rmdir(path)

    monkeypatch.setattr(Path, "rmdir", late)
    _refused(run)
    assert others[0].is_locked and (run.path / ".lock").is_file()
    others[0].release()
