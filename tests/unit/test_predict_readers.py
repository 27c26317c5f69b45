"""Laws of processes that read: the bytes that threads give, whatever happens to them, and nothing left behind."""

import errno
import io
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jobs_made import made_bundle, stepping, untimed
from PIL import Image
from rich.console import Console

from medmtl.data.preprocess import Preprocess
from medmtl.errors import TrainingInterrupted
from medmtl.inference import pipeline, readers
from medmtl.inference.inputs import Finder
from medmtl.inference.ledger import read_ledger
from medmtl.inference.listing import Input
from medmtl.inference.pipeline import Job, predict
from medmtl.inference.readers import Readers, reading_apart, worthwhile
from medmtl.inference.reading import Loaded, Reader
from medmtl.inference.watch import watch
from medmtl.inference.writers import Output
from medmtl.io.raster import write_png
from medmtl.signals import signals

TASKS: dict[str, Any] = {
    "grade": {"kind": "classification", "classes": ["low", "high"]},
    "gland": {"kind": "segmentation", "classes": ["background", "gland"], "decoder": {"width": 16}},
}
_LONG_S = 60.0


@pytest.fixture(autouse=True)
def forkable(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a program of its own: what runs the tests may have threads."""
    monkeypatch.setattr(readers, "forkable", lambda: True)


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


def _noted(monkeypatch: pytest.MonkeyPatch) -> list[BaseProcess]:
    """The processes that are started from now on."""
    start, started = readers._start, []

    def noted(reader: Reader) -> Any:
        found = start(reader)
        assert found is not None
        started.append(found.process)
        return found

    monkeypatch.setattr(readers, "_start", noted)
    return started


@pytest.fixture
def read_apart(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Ids of what processes read, in jobs of any size."""
    ids: list[str] = []
    real = Readers.read

    def read(self: Readers, inputs: Any, *rest: Any) -> list[Loaded]:
        found = real(self, inputs, *rest)
        ids.extend(one.item.id for one in found)
        return found

    monkeypatch.setattr(Readers, "read", read)
    monkeypatch.setattr(pipeline, "LEAST", 1)
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
    started, apart = _noted(monkeypatch), Readers.read

    def killed(self: Readers, inputs: Any, *rest: Any) -> list[Loaded]:
        if len(read_apart) >= 4:
            started[0].kill()
        return apart(self, inputs, *rest)

    monkeypatch.setattr(Readers, "read", killed)
    out = tmp_path / "out"
    assert _go(bundle, source, out) == 3
    assert sorted(read_apart) == ["00.png", "01.png", "02.png", "03.png"]
    assert untimed(out) == untimed(by_threads)
    assert _lines(out) == _lines(by_threads)


@pytest.mark.parametrize("place", [(Connection, "recv_bytes"), (readers._Place, "of")], ids=["pipe", "memory"])
def test_threads_go_on_where_the_job_has_no_memory_for_an_answer(
    bundle: Path,
    source: Path,
    by_threads: Path,
    tmp_path: Path,
    read_apart: list[str],
    monkeypatch: pytest.MonkeyPatch,
    place: tuple[type, str],
) -> None:
    job, real = os.getpid(), getattr(*place)

    def short(self: Any, *rest: Any) -> Any:
        if os.getpid() == job and len(read_apart) >= 4:
            raise MemoryError
        return real(self, *rest)

    monkeypatch.setattr(*place, short)
    out = tmp_path / "out"
    assert _go(bundle, source, out) == 3
    assert read_apart == ["00.png", "01.png", "02.png", "03.png"]
    assert untimed(out) == untimed(by_threads)
    assert _lines(out) == _lines(by_threads)


def test_threads_go_on_where_no_process_can_be_started(
    bundle: Path,
    source: Path,
    by_threads: Path,
    tmp_path: Path,
    read_apart: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fork() -> int:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", fork)
    assert _go(bundle, source, tmp_path / "out") == 3
    assert not read_apart
    assert untimed(tmp_path / "out") == untimed(by_threads)


def test_threads_read_where_forking_is_not_safe(
    bundle: Path,
    source: Path,
    by_threads: Path,
    tmp_path: Path,
    read_apart: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(readers, "forkable", lambda: False)
    assert _go(bundle, source, tmp_path / "out") == 3
    assert not read_apart
    assert untimed(tmp_path / "out") == untimed(by_threads)


THREADS = """
import _thread, multiprocessing, threading, time
from medmtl.inference.readers import forkable
print(forkable())
end = threading.Event()
thread = threading.Thread(target=end.wait)
thread.start()
print(forkable())
end.set()
thread.join()
print(forkable())
_thread.start_new_thread(lambda: time.sleep(600), ())
time.sleep(0.2)
print(forkable())
"""


def test_forking_is_safe_where_no_other_thread_runs_python() -> None:
    run = subprocess.run([sys.executable, "-c", THREADS], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["True", "False", "True", "False"]


def test_a_process_holds_nothing_of_the_job(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither its lock, nor what it writes, nor another's pipe; and it has its own session and signals."""
    started, preprocess = _noted(monkeypatch), Preprocess()
    items = [item for item in Finder(source, preprocess).find().inputs if worthwhile(item)]
    reader = Reader(source, preprocess, max_bytes=2**20)
    with (tmp_path / "lock").open("w"), signals("batch"), reading_apart(reader, 2) as found:
        for item in items[:2]:
            assert len(found.read([item])) == 1
        for process in started:
            assert os.getsid(process.pid or 0) == process.pid
            told = Path(f"/proc/{process.pid}/status").read_text()
            caught, ignored = (int(told.partition(name)[2].split()[0], 16) for name in ("SigCgt:", "SigIgn:"))
            for number in (signal.SIGINT, signal.SIGTERM):
                assert not (caught | ignored) >> (number - 1) & 1
            held = sorted(str(place.readlink()) for place in Path(f"/proc/{process.pid}/fd").iterdir())
            assert held[:-1] == ["/dev/null"] * 3
            assert held[-1].startswith("socket:")


def test_a_job_on_a_signal_ends_with_its_processes_and_goes_on_later(
    bundle: Path, source: Path, by_threads: Path, tmp_path: Path, read_apart: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    started, apart = _noted(monkeypatch), Readers.read

    def interrupted(self: Readers, inputs: Any, *rest: Any) -> list[Loaded]:
        if len(read_apart) == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return apart(self, inputs, *rest)

    monkeypatch.setattr(Readers, "read", interrupted)
    with pytest.raises(TrainingInterrupted):
        _go(bundle, source, tmp_path / "out")
    assert [process.exitcode for process in started] == [-signal.SIGKILL]
    assert 0 < len(_lines(tmp_path / "out")) < len(_lines(by_threads))
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
        assert found.read(items) == []
        assert [one.item.id for one in found.read(items[:1])] == ["00.png"]  # and the process lives


@pytest.mark.parametrize("room", [0, 2**16, 2**25])
def test_pictures_that_the_memory_does_not_hold_come_through_the_pipe(
    source: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    """Two arrays of 15,360 bytes each; every answer is whole while the next one is written."""
    monkeypatch.setattr(readers, "_ANSWER", room or 1)
    preprocess = Preprocess()
    items = [item for item in Finder(source, preprocess).find().inputs if worthwhile(item)]
    reader = Reader(source, preprocess, max_bytes=2**20)
    expected = {item.id: reader.loaded(item) for item in items}
    with reading_apart(reader, 1) as found:
        read = found.read(items * 6)
        assert [one.item.id for one in read] == [item.id for item in items] * 6
        for one in read:
            whole = expected[one.item.id]
            assert (one.sha256, one.verdict, str(one.error)) == (whole.sha256, whole.verdict, str(whole.error))
            assert (one.image is None) == (whole.image is None)
            if one.image is not None and whole.image is not None:
                assert torch.equal(one.image, whole.image)
                assert np.array_equal(np.asarray(one.shown), np.asarray(whole.shown))


@pytest.mark.parametrize(
    "preprocess",
    [
        {},
        {"resize": [48, 50]},
        {"window": [20, 30]},
        {"window": [40, 50], "pad": True},
        {"resize": [50, 60], "window": [30, 30]},
        {"patches": {"size": [48, 24]}},
    ],
    ids=str,
)
def test_as_many_pictures_are_asked_for_as_the_memory_holds(
    source: Path, monkeypatch: pytest.MonkeyPatch, preprocess: dict[str, Any]
) -> None:
    """Of ten, two at a time: five answers, none of which is longer than what the system keeps of a pipe."""
    lengths: list[int] = []
    receive = Connection.recv_bytes

    def noted(self: Any) -> bytes:
        answer = receive(self)
        lengths.append(len(answer))
        return answer

    monkeypatch.setattr(Connection, "recv_bytes", noted)
    reader = Reader(source, Preprocess.model_validate(preprocess), max_bytes=2**20)
    items = [item for item in Finder(source, reader.preprocess).find().inputs if worthwhile(item)]
    one = reader.loaded(items[0])
    assert one.image is not None and isinstance(one.shown, np.ndarray)
    monkeypatch.setattr(readers, "_ANSWER", 2 * sum(-(-n // 64) * 64 for n in (one.image.nbytes, one.shown.nbytes)))
    with reading_apart(reader, 1) as found:
        assert [one.item.id for one in found.read(items)] == [item.id for item in items]
    assert len(lengths) == 5
    assert max(lengths) <= 2**16


def test_a_size_of_other_axes_is_left_to_the_preprocessing(source: Path) -> None:
    """Which refuses it, as in a thread: a row, not the end of the job."""
    reader = Reader(source, Preprocess(window=(16, 16, 16)), max_bytes=2**20)
    items = [item for item in Finder(source, reader.preprocess).find().inputs if worthwhile(item)]
    with reading_apart(reader, 1) as found:
        read = found.read(items)
    assert len(read) == 10
    assert [str(one.error) for one in read] == [str(reader.loaded(item).error) for item in items]
    assert all(one.error is not None for one in read)


def test_a_step_is_told_after_each_answer(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A watcher's sign of life must not wait for a whole batch."""
    (tmp_path / "in").mkdir()
    for n in range(40):
        write_png(tmp_path / "in" / f"{n:02d}.png", np.full((8, 8, 3), n, dtype=np.uint8))
    steps: list[int] = []
    told: list[int] = []
    real = Readers.read

    def read(self: Readers, inputs: Any, *rest: Any) -> list[Loaded]:
        found = real(self, inputs, *rest)
        told.append(len(steps))
        assert len(found) == 40
        return found

    monkeypatch.setattr(Readers, "read", read)
    monkeypatch.setattr(pipeline, "LEAST", 1)
    job = Job(bundle, tmp_path / "in", tmp_path / "out", device="cpu", batch_size=40, workers=1, overlays=False)
    with pipeline.opened(job, Console(file=io.StringIO())) as session:
        session.work.stepped = lambda: steps.append(1)
        session.predict()
    assert len(told) == 1
    assert told[0] >= 3


def test_a_watcher_reads_in_processes_too(
    bundle: Path, source: Path, tmp_path: Path, read_apart: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def watched(out: Path) -> dict[str, bytes]:
        job = Job(bundle, tmp_path / "in", out, device="cpu", batch_size=4, workers=1)
        watch(job, settle_s=5.0, clock=stepping([lambda: None] * 2), console=Console(file=io.StringIO()))
        return untimed(out, ".watch.json")

    for study in ("a", "b"):
        shutil.copytree(source, tmp_path / "in" / study)
    with_processes = watched(tmp_path / "processes")
    assert sorted(read_apart) == [f"{study}/{n:02d}.png" for study in "ab" for n in range(10)]
    monkeypatch.setattr(readers, "forkable", lambda: False)
    read_apart.clear()
    assert watched(tmp_path / "threads") == with_processes
    assert not read_apart
    assert _lines(tmp_path / "threads") == _lines(tmp_path / "processes")


def test_long_questions_and_long_answers_do_not_wait_for_each_other(source: Path) -> None:
    """Both are longer than what the system keeps of a pipe."""
    preprocess = Preprocess()
    (item,) = (item for item in Finder(source, preprocess).find().inputs if item.id == "00.png")
    items = [replace(item, id=f"{n}" + "x" * 50_000) for n in range(40)]
    with reading_apart(Reader(source, preprocess, max_bytes=2**20), 1) as found:
        assert [one.item.id for one in found.read(items)] == [item.id for item in items]


def test_a_process_that_hangs_is_given_up(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = _noted(monkeypatch)
    preprocess = Preprocess()
    items = [item for item in Finder(source, preprocess).find().inputs if worthwhile(item)]
    with reading_apart(Reader(source, preprocess, max_bytes=2**20), 1) as found:
        assert len(found.read(items)) == 10
        os.kill(started[0].pid or 0, signal.SIGSTOP)
        monkeypatch.setattr(readers, "_PATIENCE_S", 0.1)
        assert found.read(items) == [] and found.idle.empty()
    assert started[0].exitcode == -signal.SIGKILL


def test_a_process_that_hangs_within_an_answer_is_given_up(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started, job, send = _noted(monkeypatch), os.getpid(), Connection.send_bytes

    def halted(self: Any, content: bytes) -> None:
        if os.getpid() != job:
            os.write(self.fileno(), (len(content) + 1).to_bytes(4, "big") + content)
            os.kill(os.getpid(), signal.SIGSTOP)
        send(self, content)

    monkeypatch.setattr(Connection, "send_bytes", halted)
    monkeypatch.setattr(readers, "_PATIENCE_S", 1.0)
    preprocess = Preprocess()
    items = [item for item in Finder(source, preprocess).find().inputs if worthwhile(item)]
    with ThreadPoolExecutor(1) as pool, reading_apart(Reader(source, preprocess, max_bytes=2**20), 1) as found:
        assert pool.submit(found.read, items).result(_LONG_S) == []
        assert found.idle.empty()
        assert Path(f"/proc/{started[0].pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def test_a_process_that_does_not_take_a_question_is_given_up(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The question is longer than what the system keeps of a pipe."""
    started = _noted(monkeypatch)
    preprocess = Preprocess()
    (item,) = (item for item in Finder(source, preprocess).find().inputs if item.id == "00.png")
    monkeypatch.setattr(readers, "_PATIENCE_S", 0.1)
    with ThreadPoolExecutor(1) as pool, reading_apart(Reader(source, preprocess, max_bytes=2**20), 1) as found:
        os.kill(started[0].pid or 0, signal.SIGSTOP)
        assert pool.submit(found.read, [replace(item, id="x" * 2**22)]).result(_LONG_S) == []


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, True),
        ({"shape": (512, 512)}, True),
        ({"shape": (512, 513)}, False),
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
    monkeypatch.setattr(readers, "_start", lambda reader: pytest.fail("a process was started"))
    assert _go(bundle, source, tmp_path / "out") == 3


def test_what_takes_seconds_to_import_is_imported_where_it_is_used() -> None:
    program = "import medmtl.inference.pipeline, sys; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not {"monai", "sklearn", "matplotlib", "mlflow"} & set(run.stdout.split())


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
def noted(reader):
    found = start(reader)
    print(found.process.pid, flush=True)
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
    _await(lambda: not _lives(reader))


HANGS = """
import os, sys, time
from pathlib import Path
from medmtl.data.preprocess import Preprocess
from medmtl.inference import readers
from medmtl.inference.listing import Input
class Hangs(readers.Reader):
    def loaded(self, item, done=None):
        os.write(os.open(sys.argv[1], os.O_WRONLY), b"%d" % os.getpid())
        while True:
            time.sleep(600)
with readers.reading_apart(Hangs(Path("."), Preprocess(), max_bytes=1), 1) as found:
    found.read([Input("a", "raster", (), shape=(8, 8))])
"""


def test_a_killed_job_leaves_no_process_behind_that_hangs_in_a_picture(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "alive")  # which the process holds open while it lives
    command = [sys.executable, "-c", HANGS, str(tmp_path / "alive")]
    with subprocess.Popen(command) as job, (tmp_path / "alive").open("rb", buffering=0) as stream:
        reader = int(stream.read(20))
        os.kill(job.pid, signal.SIGKILL)
        ended = bool(select.select([stream], [], [], _LONG_S)[0]) and not stream.read(20)
    if not ended:
        os.kill(reader, signal.SIGKILL)
    assert ended, "the process goes on"


def test_a_process_whose_job_ended_before_it_began_ends() -> None:
    child = os.fork()
    if not child:
        readers._end_with(os.getpid(), bound=False)  # no process is its own parent
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_process_outlives_the_thread_that_started_it(source: Path) -> None:
    """The kernel ends a process with the *thread* that forked it."""
    preprocess = Preprocess()
    items = [item for item in Finder(source, preprocess).find().inputs if worthwhile(item)]
    apart = reading_apart(Reader(source, preprocess, max_bytes=2**20), 1)
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(apart.__enter__).result()
        thread = pool.submit(threading.get_native_id).result()
    try:
        _await(lambda: not Path(f"/proc/self/task/{thread}").exists())
        assert len(found.read(items)) == 10
    finally:
        apart.__exit__(None, None, None)


def _await(true: Callable[[], bool]) -> None:
    began = time.monotonic()
    while not true():
        assert time.monotonic() - began < _LONG_S, "it does not come true"
        time.sleep(0.05)


def _lives(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"  # which waits for somebody to ask how it ended
