"""Laws of processes that read: the bytes that threads give, whatever happens to them, and nothing left behind."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jobs_made import made_bundle, untimed
from PIL import Image
from rich.console import Console

from medmtl.data.preprocess import Preprocess
from medmtl.inference import pipeline, readers
from medmtl.inference.inputs import Finder
from medmtl.inference.ledger import read_ledger
from medmtl.inference.listing import Input
from medmtl.inference.pipeline import Job, predict
from medmtl.inference.readers import Readers, reading_apart, worthwhile
from medmtl.inference.reading import Loaded, Reader
from medmtl.inference.writers import Output
from medmtl.io.raster import write_png

TASKS: dict[str, Any] = {
    "grade": {"kind": "classification", "classes": ["low", "high"]},
    "gland": {"kind": "segmentation", "classes": ["background", "gland"], "decoder": {"width": 16}},
}
_LONG_S = 60.0


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_bundle(tmp_path_factory.mktemp("bundle"), TASKS)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine pictures, one that is cut off, one that is none, and two in one file."""
    root = tmp_path_factory.mktemp("in")
    for n in range(10):
        write_png(root / f"{n:02d}.png", np.random.default_rng(n).integers(0, 256, (32, 40, 3), dtype=np.uint8))
    (root / "04.png").write_bytes((root / "04.png").read_bytes()[:1500])
    (root / "05b.png").write_text("no picture")
    pages = [Image.fromarray(np.full((32, 40, 3), value, np.uint8)) for value in (80, 160)]
    pages[0].save(root / "07b.tiff", save_all=True, append_images=pages[1:])
    return root


@pytest.fixture(scope="module")
def by_threads(bundle: Path, source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("threads") / "out"
    assert _go(bundle, source, out) == 3
    return out


def _go(bundle: Path, source: Path, out: Path, workers: int = 1) -> int:
    job = Job(bundle, source, out, device="cpu", batch_size=4, workers=workers, output=Output(formats=("json", "html")))
    return predict(job, console=Console(file=io.StringIO())).exit_code


def _lines(out: Path) -> list[dict[str, Any]]:
    return [{**vars(entry), "seconds": 0} for entry in read_ledger(out / "cases.jsonl")]


def _ready(found: Readers, count: int) -> None:
    began = time.monotonic()
    while found.idle.qsize() < count:
        assert time.monotonic() - began < _LONG_S, "no process came to be ready"
        time.sleep(0.01)


@pytest.fixture
def read_apart(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Ids of what processes read, in jobs of any size, which here wait until theirs are ready."""
    ids: list[str] = []
    real = Readers.read

    def read(self: Readers, inputs: Any) -> list[Loaded]:
        found = real(self, inputs)
        ids.extend(one.item.id for one in found)
        return found

    @contextmanager
    def waited(reader: Reader, count: int) -> Iterator[Readers]:
        with reading_apart(reader, count) as found:
            _ready(found, count)
            yield found

    monkeypatch.setattr(Readers, "read", read)
    monkeypatch.setattr(pipeline, "LEAST", 1)
    monkeypatch.setattr(pipeline, "reading_apart", waited)
    return ids


@pytest.mark.parametrize("workers", [1, 3])
def test_processes_give_the_bytes_of_threads(
    bundle: Path, source: Path, by_threads: Path, tmp_path: Path, read_apart: list[str], workers: int
) -> None:
    out = tmp_path / "out"
    assert _go(bundle, source, out, workers) == 3
    assert sorted(read_apart) == [f"{n:02d}.png" for n in range(10)]  # the damaged one, too
    assert untimed(out) == untimed(by_threads)
    assert _lines(out) == _lines(by_threads)


def test_a_resumed_job_reads_what_is_left(
    bundle: Path, source: Path, by_threads: Path, tmp_path: Path, read_apart: list[str]
) -> None:
    out = tmp_path / "out"
    assert _go(bundle, source, out) == 3
    lines = (out / "cases.jsonl").read_text().splitlines(keepends=True)
    kept = [line for line in lines if json.loads(line)["id"] not in ("01.png", "04.png", "09.png")]
    (out / "cases.jsonl").write_text("".join(kept))
    read_apart.clear()
    assert _go(bundle, source, out) == 3
    assert sorted(read_apart) == ["01.png", "04.png", "09.png"]
    assert untimed(out) == untimed(by_threads)


def test_threads_go_on_where_a_process_was_killed(
    bundle: Path,
    source: Path,
    by_threads: Path,
    tmp_path: Path,
    read_apart: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[subprocess.Popen[bytes]] = []
    start, apart = readers._start, Readers.read

    def noted() -> Any:
        found = start()
        assert found is not None
        started.append(found[0])
        return found

    def killed(self: Readers, inputs: Any) -> list[Loaded]:
        if len(read_apart) >= 4:
            started[0].kill()
        return apart(self, inputs)

    monkeypatch.setattr(readers, "_start", noted)
    monkeypatch.setattr(Readers, "read", killed)
    out = tmp_path / "out"
    assert _go(bundle, source, out) == 3
    assert sorted(read_apart) == ["00.png", "01.png", "02.png", "03.png"]
    assert untimed(out) == untimed(by_threads)
    assert _lines(out) == _lines(by_threads)


def test_threads_go_on_where_no_process_can_be_started(
    bundle: Path, source: Path, by_threads: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "LEAST", 1)
    monkeypatch.setattr(readers.sys, "executable", str(tmp_path / "none"))
    assert _go(bundle, source, tmp_path / "out") == 3
    assert untimed(tmp_path / "out") == untimed(by_threads)


class Broken(Reader):
    """Meets a defect in a picture."""

    def loaded(self, item: Input, done: Any = lambda content: False) -> Loaded:
        if item.id > "02.png":
            raise RuntimeError("a defect")
        return super().loaded(item, done)


def test_a_defect_is_left_to_the_job(source: Path) -> None:
    preprocess = Preprocess()
    items = [item for item in Finder(source, preprocess).find().inputs if worthwhile(item)][:4]
    with reading_apart(Broken(source, preprocess, max_bytes=2**20), 1) as found:
        _ready(found, 1)
        assert found.read(items) == []
        assert [one.item.id for one in found.read(items[:1])] == ["00.png"]  # and the process lives


def test_long_questions_and_long_answers_do_not_wait_for_each_other(source: Path) -> None:
    """Both are longer than what the system keeps of a pipe."""
    preprocess = Preprocess()
    (item,) = (item for item in Finder(source, preprocess).find().inputs if item.id == "00.png")
    items = [replace(item, id=f"{n}" + "x" * 50_000) for n in range(40)]
    with reading_apart(Reader(source, preprocess, max_bytes=2**20), 1) as found:
        _ready(found, 1)
        assert [one.item.id for one in found.read(items)] == [item.id for item in items]


def test_a_process_that_hangs_is_given_up(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start, started = readers._start, []

    def noted() -> Any:
        started.append(start())
        return started[0]

    monkeypatch.setattr(readers, "_start", noted)
    preprocess = Preprocess()
    items = [item for item in Finder(source, preprocess).find().inputs if worthwhile(item)]
    with reading_apart(Reader(source, preprocess, max_bytes=2**20), 1) as found:
        _ready(found, 1)
        assert len(found.read(items)) == 10
        os.kill(started[0][0].pid, signal.SIGSTOP)
        monkeypatch.setattr(readers, "_PATIENCE_S", 0.1)
        assert found.read(items) == [] and found.idle.empty()
    assert started[0][0].returncode == -signal.SIGKILL


@pytest.mark.parametrize("executable", [None, "", "/nowhere/python"])
def test_a_process_that_cannot_be_started_is_none(monkeypatch: pytest.MonkeyPatch, executable: str | None) -> None:
    monkeypatch.setattr(readers.sys, "executable", executable)
    assert readers._start() is None


def test_a_current_folder_that_was_deleted_is_no_place_to_import_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    monkeypatch.setattr(readers.sys, "path", ["", "here", "/there"])
    assert readers._path() == [str(tmp_path / "gone"), str(tmp_path / "gone/here"), "/there"]
    (tmp_path / "gone").rmdir()
    assert readers._path() == ["/there"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, True),
        ({"shape": (1024, 1024)}, True),
        ({"shape": (1024, 1025)}, False),
        ({"shape": ()}, False),
        ({"pages": 2}, False),
        ({"kind": "dicom"}, False),
        ({"refused": ValueError()}, False),
    ],
)
def test_what_is_worth_a_process(changes: dict[str, Any], expected: bool) -> None:
    assert worthwhile(Input(**{"id": "a", "kind": "raster", "files": (), "shape": (8, 8), **changes})) is expected


def test_few_pictures_start_no_process(
    bundle: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "_start", lambda: pytest.fail("a process was started"))
    assert _go(bundle, source, tmp_path / "out") == 3


@pytest.mark.parametrize(
    ("module", "more"), [("readers", {"timm", "torchvision", "pandas", "medmtl.bundle"}), ("pipeline", set())]
)
def test_what_takes_seconds_to_import_is_imported_where_it_is_used(module: str, more: set[str]) -> None:
    program = f"import medmtl.inference.{module}, sys; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not {"monai", "sklearn", "matplotlib", "mlflow", *more} & set(run.stdout.split())


PROGRAM = """
import io, sys
from pathlib import Path
from rich.console import Console
from medmtl.inference import pipeline
pipeline.LEAST = 1
print("begin", flush=True)
job = pipeline.Job(*map(Path, sys.argv[1:]), device="cpu", batch_size=4)
print(pipeline.predict(job, console=Console(file=io.StringIO())).exit_code)
"""


def test_a_program_without_a_guarded_main_part_runs_once(bundle: Path, source: Path, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, str(tmp_path / "program.py"), str(bundle), str(source), str(tmp_path / "out")]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["begin", "3"]


ALONE = """
import os, sys, time
from pathlib import Path
from medmtl.data.preprocess import Preprocess
from medmtl.inference import readers
start = readers._start
def noted():
    found = start()
    print(found[0].pid, flush=True)
    return found
readers._start = noted
with readers.reading_apart(readers.Reader(Path("."), Preprocess(), max_bytes=1), 1):
    time.sleep(600)
"""


def test_a_killed_job_leaves_no_process_behind() -> None:
    with subprocess.Popen([sys.executable, "-c", ALONE], stdout=subprocess.PIPE, text=True) as job:
        assert job.stdout is not None
        reader = int(job.stdout.readline())
        assert _lives(reader)
        os.kill(job.pid, signal.SIGKILL)
    began = time.monotonic()
    while _lives(reader):
        assert time.monotonic() - began < _LONG_S, "the process goes on"
        time.sleep(0.05)


def _lives(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"  # which waits for somebody to ask how it ended
