"""Laws of a job that is ended from outside: kills at any moment, a full disk, a folder that cannot be written to."""

import io
import multiprocessing
import os
import resource
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jobs_made import made_bundle
from rich.console import Console

from medmtl.errors import EnvironmentFailure, UserError
from medmtl.inference.ledger import read_ledger
from medmtl.inference.pipeline import Job, predict
from medmtl.inference.writers import Output
from medmtl.io.nifti import write_nifti
from medmtl.io.raster import write_png
from medmtl.io.volume import Volume

TASKS: dict[str, Any] = {
    "grade": {"kind": "classification", "classes": ["low", "high"]},
    "gland": {"kind": "segmentation", "classes": ["background", "gland"], "decoder": {"width": 16}},
}
VOLUME = {"channels": 1, "volume": {"intensity": {"kind": "range", "low": 0, "high": 200}}}


def _bundle(folder: Path, preprocess: dict[str, Any], encoder: str) -> Path:
    return made_bundle(folder, TASKS, preprocess, encoder)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _bundle(tmp_path_factory.mktemp("pictures"), {"channels": 3}, "timm")


def _volumes(root: Path, count: int) -> Path:
    for n in range(count):
        array = np.random.default_rng(n).integers(0, 200, (40, 36, 12)).astype(np.int16)
        write_nifti(root / f"{n:02d}.nii.gz", Volume(array, np.diag([1.0, 1.0, 2.0, 1.0])))
    return root


def _go(job: Job) -> None:
    predict(job, console=Console(file=io.StringIO()))


def _child(job: Job, limit: int | None = None) -> Any:
    """The job in a process of its own, which may write no file of more than ``limit`` bytes."""

    def run() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        try:
            _go(job)
        except UserError as error:
            os._exit(error.exit_code)
        os._exit(0)

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    return process


def _results(out: Path) -> dict[str, bytes]:
    timed = (".lock", "cases.jsonl", "manifest.json", "summary.md")
    files = (path for path in out.rglob("*") if path.is_file() and path.name not in timed)
    return {str(path.relative_to(out)): path.read_bytes() for path in files}


@pytest.mark.slow
def test_ten_kills_at_random_moments_change_no_byte(tmp_path: Path) -> None:
    bundle = _bundle(tmp_path / "bundle", VOLUME, "slices")
    source = _volumes(tmp_path / "in", 24)
    began = time.monotonic()
    job = Job(bundle, source, tmp_path / "out", device="cpu", batch_size=2, workers=2)
    job = replace(job, output=Output(formats=("nifti", "json")))
    _go(replace(job, out=tmp_path / "whole"))
    spent = time.monotonic() - began
    rng = np.random.default_rng(0)
    killed = 0
    for _ in range(10):
        process = _child(job)
        process.join(float(rng.uniform(0.05, 0.4)) * spent)
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
            killed += 1
        process.join()
    assert killed >= 5
    _go(job)
    assert _results(tmp_path / "out") == _results(tmp_path / "whole")
    entries = read_ledger(tmp_path / "out" / "cases.jsonl")
    assert len({entry.id for entry in entries}) == len(entries) == 24  # nothing was computed twice


def test_a_full_disk_ends_the_job_and_the_next_goes_on(pictures: Path, tmp_path: Path) -> None:
    source = tmp_path / "in"
    for n in range(6):
        size = 160 if n == 4 else 32  # whose overlay is larger than the disk has room for
        write_png(source / f"{n}.png", np.random.default_rng(n).integers(0, 256, (size, size, 3), dtype=np.uint8))
    job = Job(pictures, source, tmp_path / "out", device="cpu", batch_size=2)
    process = _child(job, limit=32_000)
    process.join()
    assert process.exitcode == 5
    done = {entry.id for entry in read_ledger(tmp_path / "out" / "cases.jsonl") if entry.status == "ok"}
    assert {"0.png", "1.png", "2.png", "3.png"} <= done
    assert "4.png" not in done
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert not [path for path in (tmp_path / "out").rglob(".*") if path.name != ".lock"]
    _go(job)
    _go(Job(pictures, source, tmp_path / "whole", device="cpu", batch_size=2))
    assert _results(tmp_path / "out") == _results(tmp_path / "whole")


def test_a_folder_that_cannot_be_written_to_is_the_machine_s_fault(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_png(tmp_path / "in" / "a.png", np.zeros((32, 32, 3), np.uint8))

    def refuse(self: Path, *arguments: Any, **more: Any) -> None:
        raise PermissionError(13, "Permission denied")  # as root, no mode would refuse

    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", refuse)
        with pytest.raises(EnvironmentFailure, match=r"E-DISK.*permission is denied"):
            _go(Job(pictures, tmp_path / "in", tmp_path / "out", device="cpu"))


def test_two_jobs_at_once_do_not_mix(pictures: Path, tmp_path: Path) -> None:
    for n in range(40):
        write_png(tmp_path / "in" / f"{n}.png", np.random.default_rng(n).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    job = Job(pictures, tmp_path / "in", tmp_path / "out", device="cpu", batch_size=2)
    both = [_child(job), _child(job)]
    for process in both:
        process.join()
    assert sorted(process.exitcode for process in both) in ([0, 2], [0, 0])  # refused, or one after the other
    entries = read_ledger(tmp_path / "out" / "cases.jsonl")
    assert len({entry.id for entry in entries}) == len(entries) == 40
