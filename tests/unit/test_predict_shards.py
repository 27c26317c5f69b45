"""Laws of a job that several processes share: the bytes of one process, and no case lost when one of them ends."""

import io
import json
import multiprocessing
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock
from jobs_made import made_bundle, untimed
from rich.console import Console

from medmtl.cli import run
from medmtl.errors import UserError
from medmtl.files import write_atomic
from medmtl.inference import cluster, shards
from medmtl.inference.ledger import Ledger, read_ledger
from medmtl.inference.pipeline import Job, predict
from medmtl.inference.shards import Shard
from medmtl.inference.watch import watch
from medmtl.inference.writers import Output
from medmtl.io.raster import write_png

TASKS: dict[str, Any] = {
    "grade": {"kind": "classification", "classes": ["low", "high"]},
    "gland": {"kind": "segmentation", "classes": ["background", "gland"], "decoder": {"width": 16}},
}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_bundle(tmp_path_factory.mktemp("bundle"), TASKS)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eleven pictures and one that is none: six batches of two."""
    root = tmp_path_factory.mktemp("in")
    for n in range(11):
        write_png(root / f"{n:02d}.png", np.random.default_rng(n).integers(0, 256, (32, 40, 3), dtype=np.uint8))
    (root / "05b.png").write_text("no picture")
    return root


def _job(bundle: Path, source: Path, out: Path, **more: Any) -> Job:
    output = Output(formats=("json", "html"))
    return Job(bundle, source, out, **{"device": "cpu", "batch_size": 2, "output": output, **more})


def _go(job: Job) -> int:
    return predict(job, console=Console(file=io.StringIO())).exit_code


def _children(job: Job, world: int, dies_before: int | None = None) -> list[int | None]:
    """Exit codes of the processes of a job; the last one is killed before it records that batch of its own."""

    def child(rank: int) -> None:
        if dies_before is not None and rank == world - 1:
            _die_before(dies_before)
        try:
            code = _go(replace(job, shard=Shard(rank, world)))
        except UserError as error:
            code = error.exit_code
        os._exit(code)

    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=child, args=(rank,)) for rank in reversed(range(world))]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return [process.exitcode for process in reversed(processes)]


def _die_before(record: int) -> None:
    """End this process when it is about to record its batch of that number; the files of the batch are there."""
    real, recorded = Ledger.append, []

    def append(self: Ledger, entries: Any) -> None:
        recorded.append(1)
        if len(recorded) == record:
            os.kill(os.getpid(), signal.SIGKILL)
        real(self, entries)

    Ledger.append = append  # type: ignore[method-assign] # of this process alone


def _without_times(out: Path) -> tuple[dict[str, Any], str]:
    tree = json.loads((out / "manifest.json").read_text())
    for name in ("seconds", "seconds_per_image", "seconds_per_view", "processes"):
        del tree[name]
    return tree, (out / "summary.md").read_text().partition("Time:")[0]


@pytest.fixture(scope="module")
def whole(bundle: Path, source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of one process."""
    out = tmp_path_factory.mktemp("whole") / "out"
    assert _go(_job(bundle, source, out)) == 3
    return out


@pytest.mark.parametrize("world", [2, 3, 8])
def test_several_processes_write_the_bytes_of_one(
    bundle: Path, source: Path, whole: Path, tmp_path: Path, world: int
) -> None:
    out = tmp_path / "out"
    assert _children(_job(bundle, source, out), world) == [3, *[0] * (world - 1)]  # the first alone tells how it ended
    assert untimed(out) == untimed(whole)
    assert _without_times(out) == _without_times(whole)
    entries = read_ledger(out / "cases.jsonl")
    assert len({entry.id for entry in entries}) == len(entries) == 12  # nothing was computed twice
    assert not [path for path in out.glob(".*") if path.name != ".lock"]
    tree = json.loads((out / "manifest.json").read_text())
    assert (tree["processes"], tree["counts"]["resumed"]) == (world, 0)


def test_each_process_does_its_share_alone(bundle: Path, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert _children(_job(bundle, source, out), 2, dies_before=2) == [5, -signal.SIGKILL]
    assert not (out / "manifest.json").exists()
    first = [entry.id for entry in read_ledger(out / "cases.jsonl")]
    assert first == ["00.png", "01.png", "04.png", "05.png", "07.png", "08.png"]  # batches 0, 2 and 4
    (other,) = shards.ledgers(out)
    assert [entry.id for entry in read_ledger(other)] == ["02.png", "03.png"]


@pytest.mark.parametrize("then", [1, 3])
def test_what_a_dead_process_did_is_kept_whoever_goes_on(
    bundle: Path, source: Path, whole: Path, tmp_path: Path, then: int
) -> None:
    out = tmp_path / "out"
    job = _job(bundle, source, out)
    _children(job, 2, dies_before=2)
    (out / ".ray-0").mkdir()
    (out / ".ray-0/lock").touch()  # it was a command on Ray that died with its workers
    assert _children(job, then)[0] == 3
    assert untimed(out) == untimed(whole)
    assert json.loads((out / "manifest.json").read_text())["counts"]["resumed"] == 8  # 00 to 05, 07, 08
    assert len([entry for entry in read_ledger(out / "cases.jsonl") if entry.status == "ok"]) == 11


def test_what_dead_commands_on_ray_left_goes_and_the_folder_of_a_living_one_stays(tmp_path: Path) -> None:
    held = {".ray-0": ("lock", "stop", "log"), ".ray-1": ("log",), ".ray-2": (), ".ray-3": ("lock", "others/file")}
    for name, files in held.items():
        (tmp_path / name).mkdir()
        for file in files:
            write_atomic(tmp_path / name / file, "")
    (tmp_path / ".ray-4").symlink_to(tmp_path / ".ray-0")
    with cluster._talk(tmp_path / "beside") as living:
        here = living.rename(tmp_path / living.name)  # its lock goes with it; beside, it would have tidied up
        (here / "log").touch()
        shards.forget(tmp_path)
        assert {path.name for path in here.iterdir()} == {"lock", "log"}
        left = {path.name for path in tmp_path.iterdir()} - {"beside", here.name}
        assert left == {".ray-1", ".ray-2", ".ray-3", ".ray-4"}  # two without a lock, one holds what is not ours
        assert (tmp_path / ".ray-3/others/file").exists()
    shards.forget(tmp_path)
    assert not here.exists()  # nobody holds it any more


def test_other_settings_do_not_take_over_what_a_dead_process_left(bundle: Path, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    _children(_job(bundle, source, out), 2, dies_before=2)
    (out / "cases.jsonl").write_bytes(b"")
    with pytest.raises(UserError, match=r"E-PRE-OUT.*settings"):
        _go(_job(bundle, source, out, overlays=False))
    _go(_job(bundle, source, out, overlays=False, overwrite=True))
    assert not list(out.glob("overlays/*/0[23].png.png"))  # those of the dead one, which its ledger names
    assert list(out.glob("masks/*/0[23].png.png"))


def test_a_process_of_an_earlier_job_that_is_alive_is_not_overtaken(bundle: Path, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with FileLock(out / ".lock-1"), pytest.raises(UserError, match="E-PRE-LOCK"):
        _go(_job(bundle, source, out))


def test_a_process_that_nobody_lets_begin_says_so(
    bundle: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "_PATIENCE_S", 0.05)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".go-1").write_text("0123456789abcdef 1000000000")  # of an earlier job
    for rank in (0, 1):
        with pytest.raises(UserError, match="E-PRE-SHARD") as caught:
            _go(_job(bundle, source, tmp_path / "out", shard=Shard(rank, 2)))
        assert caught.value.exit_code == 5


def test_inputs_that_no_process_took_are_taken_by_the_first(
    bundle: Path, source: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the folder grew between the looks of two processes."""
    monkeypatch.setattr(shards, "let_begin", lambda *arguments: None)
    monkeypatch.setattr(shards, "await_others", lambda *arguments: None)
    assert _go(_job(bundle, source, tmp_path / "out", shard=Shard(0, 2))) == 3
    assert untimed(tmp_path / "out") == untimed(whole)


def test_the_share_is_what_torchrun_says(
    bundle: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert Shard.of({}) == Shard(0, 1)
    assert Shard.of({"RANK": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}) == Shard(1, 4, 2)
    for rank, world in (("2", "2"), ("-1", "2"), ("a", "2")):
        with pytest.raises(UserError, match="E-PRE-SHARD"):
            Shard.of({"RANK": rank, "WORLD_SIZE": world})
    monkeypatch.setattr(shards, "_PATIENCE_S", 0.05)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    command = ["predict", str(bundle), str(source), str(tmp_path / "out"), "--device", "cpu"]
    assert run(command) == 5
    assert "E-PRE-SHARD" in capsys.readouterr().err
    with pytest.raises(UserError, match="E-PRE-JOB"):
        watch(_job(bundle, source, tmp_path / "out", shard=Shard(0, 2)))
