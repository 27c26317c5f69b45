"""A file is whole or absent, a path stays inside its root, an error survives the way out of a process."""

import errno
import os
import pickle
import re
import resource

import pytest
import torch
from laws import refuses

from medmtl.errors import EnvironmentFailure, NothingUsable, SafetyRefusal, TrainingInterrupted, UserError
from medmtl.files import append_line, atomic_path, disk_errors, inside, sha256, sweep_temporaries, write_atomic
from medmtl.seeds import counted, generator


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = write_atomic(tmp_path / "a" / "file.txt", "old")

    def broken():
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError("died")

    with pytest.raises(RuntimeError, match="died"):
        broken()
    assert path.read_text() == "old"
    assert [p.name for p in path.parent.iterdir()] == ["file.txt"]


def test_a_temporary_keeps_the_suffix_and_the_result_the_usual_permissions(tmp_path):
    with atomic_path(tmp_path / "image.png") as temporary:
        assert temporary.suffix == ".png" and temporary.parent == tmp_path
    mask = os.umask(0)
    os.umask(mask)
    assert (tmp_path / "image.png").stat().st_mode & 0o777 == 0o666 & ~mask


def test_a_full_disk_is_the_machines_fault_and_leaves_the_old_file(tmp_path):
    path = write_atomic(tmp_path / "file", "old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        refuses("E-DISK", lambda: write_atomic(path, b"x" * 5000), kind=EnvironmentFailure, says="too big")
        refuses("E-DISK", lambda: append_line(path, "x" * 5000), kind=EnvironmentFailure)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == b"old"  # nothing of what there was no room for, which would come to stand in the middle
    append_line(path, "new")
    assert path.read_bytes() == b"old\nnew\n"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_folder_that_may_not_be_made_is_told_as_such(tmp_path, monkeypatch):
    def refuse(*arguments, **options):
        raise PermissionError(errno.EACCES, "denied")

    monkeypatch.setattr("pathlib.Path.mkdir", refuse)
    refuses("E-DISK", lambda: write_atomic(tmp_path / "new" / "file", "x"), kind=EnvironmentFailure, says="permission")
    refuses("E-DISK", lambda: append_line(tmp_path / "new" / "file", "x"), kind=EnvironmentFailure, says="permission")


@pytest.mark.parametrize(
    ("number", "what", "remedy"),
    [
        (errno.ENOSPC, r"the disk is full \(\d+ MiB free\)", "free space"),
        (errno.EDQUOT, "the disk quota is used up", "remove files of your own"),
        (errno.EFBIG, "the file is too big", "ulimit -f"),
        (errno.EROFS, "the file system is read-only", "mount this one for writing"),
        (errno.EACCES, "permission is denied", "that you may write to"),
    ],
)
def test_each_refusal_of_the_system_has_its_own_remedy(tmp_path, number, what, remedy):
    with pytest.raises(EnvironmentFailure) as caught, disk_errors(tmp_path / "file"):
        raise OSError(number, "refused")
    assert re.fullmatch(f"cannot write: {what}", caught.value.what)
    assert remedy in caught.value.remedy and caught.value.remedy.endswith("run the same command again")
    assert number == errno.ENOSPC or "free" not in caught.value.what + caught.value.remedy


def test_lines_are_appended_and_leftovers_swept(tmp_path):
    for line in ("one", "two\n"):
        append_line(tmp_path / "log" / "x.jsonl", line)
    assert (tmp_path / "log" / "x.jsonl").read_text() == "one\ntwo\n"
    (tmp_path / "log" / ".x.jsonl.abc.tmp.jsonl").touch()
    assert sweep_temporaries(tmp_path / "log") == 1
    assert sweep_temporaries(tmp_path / "nowhere") == 0
    assert [p.name for p in (tmp_path / "log").iterdir()] == ["x.jsonl"]


def test_the_hash_is_that_of_the_bytes(tmp_path):
    (tmp_path / "empty").touch()
    assert sha256(tmp_path / "empty") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


@pytest.mark.parametrize(
    "relative",
    ["../x", "a/../../x", "/etc/passwd", "C:\\x", "file:///etc/passwd", "https://a/b", "a\0b", "out", "out/x", "loop",
     "n" * 300],
)  # fmt: skip
def test_a_path_that_leaves_its_root_is_refused(tmp_path, relative):
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "x").touch()
    (root / "out").symlink_to(tmp_path)
    (root / "loop").symlink_to(root / "loop")
    refuses("E-SEC-PATH", lambda: inside(root, relative), kind=SafetyRefusal)


def test_a_path_and_a_link_inside_are_allowed(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert inside(tmp_path, "link/new.png") == tmp_path.resolve() / "real" / "new.png"
    assert inside(tmp_path, "real/../x") == tmp_path.resolve() / "x"


@pytest.mark.parametrize(
    ("kind", "code"), [(UserError, 2), (NothingUsable, 4), (EnvironmentFailure, 5), (SafetyRefusal, 6)]
)
def test_an_error_has_an_exit_code_and_crosses_processes(kind, code):
    error = kind("E-X", "what", "remedy", where="here")
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is kind and str(back) == str(error) == "E-X here: what — remedy"
    assert (back.exit_code, back.code, back.where) == (code, "E-X", "here")
    assert [TrainingInterrupted(n).exit_code for n in (2, 15)] == [130, 143]


def test_a_counted_seed_depends_on_every_counter_and_on_nothing_else():
    seeds = [counted("a", 1, 2), counted("a", 2, 1), counted("a", 12), counted("a", "1", 2), counted("b", 1, 2)]
    assert len(set(seeds)) == len(seeds) and all(0 <= seed < 2**63 for seed in seeds)
    before = torch.get_rng_state()
    first = torch.rand(3, generator=generator("x", 1))
    torch.rand(1)
    assert torch.equal(first, torch.rand(3, generator=generator("x", 1)))
    torch.set_rng_state(before)
    assert counted("order", 0, 0) == 7488443380685178966  # fixed: another value would change every run ever made


@pytest.mark.parametrize("sync", [True, False])
def test_a_file_is_whole_or_absent_with_or_without_waiting_for_the_disk(tmp_path, monkeypatch, sync):
    waited = []
    monkeypatch.setattr(os, "fsync", waited.append)
    path = write_atomic(tmp_path / "x.json", "old", sync=sync)
    assert len(waited) == 2 * sync  # the file, and its folder for the name
    with pytest.raises(KeyboardInterrupt), atomic_path(path, sync=sync) as temporary:  # noqa: PT012
        temporary.write_text("half of the n")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and [entry.name for entry in tmp_path.iterdir()] == ["x.json"]
