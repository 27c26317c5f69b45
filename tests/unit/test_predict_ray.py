"""Laws of a job on Ray: the bytes of one process, and errors, signals and dead workers told as everywhere.

What a worker does is tried without Ray; tests that start Ray are skipped where the extra is not installed.
"""

import importlib.util
import io
import json
import multiprocessing
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
from jobs_made import made_bundle, untimed
from PIL import Image
from rich.console import Console

from medmtl import __version__
from medmtl.cli import run
from medmtl.errors import EnvironmentFailure, SafetyRefusal, TrainingInterrupted, UserError
from medmtl.inference import cluster, cluster_ray
from medmtl.inference.cluster import Cluster, predict_on_ray
from medmtl.inference.cluster_share import LOG, STOP, Part, share
from medmtl.inference.ledger import read_ledger
from medmtl.inference.pipeline import Job, predict
from medmtl.inference.shards import Shard
from medmtl.inference.work import Work
from medmtl.inference.writers import Output
from medmtl.io.raster import write_png

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="the extra medmtl[ray] is not installed")
TASKS: dict[str, Any] = {
    "grade": {"kind": "classification", "classes": ["low", "high"]},
    "gland": {"kind": "segmentation", "classes": ["background", "gland"], "decoder": {"width": 16}},
}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_bundle(tmp_path_factory.mktemp("bundle"), TASKS)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """PNG, JPEG and TIFF of two sizes, one that is damaged and a file that is no picture: five batches of two."""
    root = tmp_path_factory.mktemp("in")
    for n, kind in enumerate(("png", "jpg", "tif") * 3):
        pixels = np.random.default_rng(n).integers(0, 256, (32 + 8 * (n % 2), 40, 3), dtype=np.uint8)
        write_png(root / f"{n}.png", pixels) if kind == "png" else Image.fromarray(pixels).save(root / f"{n}.{kind}")
    (root / "5b.png").write_text("no picture")
    (root / "notes.txt").write_text("no picture either")
    return root


def _job(bundle: Path, source: Path, out: Path, **more: Any) -> Job:
    output = Output(formats=("json", "html"))
    return Job(bundle, source, out, **{"device": "cpu", "batch_size": 2, "output": output, **more})


def _part(job: Job, world: int = 1, **more: Any) -> Part:
    talk = job.out / ".ray-0"
    talk.mkdir(parents=True, exist_ok=True)
    return Part(**{"job": job, "world": world, "beside": 1, "threads": 1, "talk": talk, **more})


def _told(rank: int, part: Part) -> dict[str, Any]:
    (line,) = share({"rank": [rank]}, part)["told"]
    return json.loads(line)


@pytest.fixture(scope="module")
def whole(bundle: Path, source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of one process."""
    out = tmp_path_factory.mktemp("whole") / "out"
    assert predict(_job(bundle, source, out), console=Console(file=io.StringIO())).exit_code == 3
    return out


def _command(bundle: Path, source: Path, out: Path, *more: str) -> int:
    common = ("--device", "cpu", "--batch-size", "2", "--write", "json,html", "--names", "path")
    return run(["predict", str(bundle), str(source), str(out), *common, *more])


# Without Ray


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--ray", "2", "--watch"), "E-PRE-JOB"),
        (("--ray", "2", "--dry-run"), "E-PRE-JOB"),
        (("--ray-address", "auto"), "E-PRE-JOB"),
        (("--ray", "2", "--ray-address", "ray://127.0.0.1:10001"), "E-RAY-JOB"),
        (("--ray", "2", "--device", "cuda:1"), "E-RAY-JOB"),
        (("--ray", "0"), "--ray"),
    ],
)
def test_what_has_no_meaning_is_refused_before_anything_starts(
    bundle: Path, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], said: str
) -> None:
    assert _command(bundle, source, tmp_path / "out", *options) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_ray_under_torchrun_is_refused(bundle: Path, source: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"E-RAY-JOB RANK"):
        predict_on_ray(_job(bundle, source, tmp_path / "out", shard=Shard(0, 2)), Cluster(2))


def test_without_the_extra_the_remedy_is_said(
    bundle: Path,
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # importing it fails
    before, environment = signal.getsignal(signal.SIGTERM), dict(cluster_ray.os.environ)
    assert _command(bundle, source, tmp_path / "out", "--ray", "2") == 2
    said = capsys.readouterr().err
    assert "E-RAY-EXTRA" in said and "pip install 'medmtl[ray]'" in said
    assert not (tmp_path / "out").exists()
    assert (signal.getsignal(signal.SIGTERM), dict(cluster_ray.os.environ)) == (before, environment)


def test_workers_write_the_bytes_of_one_process(bundle: Path, source: Path, whole: Path, tmp_path: Path) -> None:
    part = _part(_job(bundle, source, tmp_path / "out"), world=2)
    with multiprocessing.get_context("fork").Pool(2) as pool:  # a worker works in its main thread
        told = pool.starmap(_told, [(rank, part) for rank in range(2)], chunksize=1)
    assert untimed(tmp_path / "out", LOG) == untimed(whole, LOG)
    heard = cluster._Heard()
    for one in reversed(told):
        heard.add(one)
    assert not heard.errors and heard.summary is not None
    assert (heard.summary.total, heard.summary.ok, heard.summary.exit_code) == (10, 9, 3)
    assert heard.summary.ignored_kinds == {".txt": 1}
    assert "images" in (part.talk / LOG).read_text()  # of the first worker, for whoever waits


@pytest.mark.parametrize(
    ("change", "code", "kind"),
    [
        ({"version": "0"}, "E-RAY-VERSION", UserError),
        ({"talk": Path("/nowhere")}, "E-RAY-FOLDER", EnvironmentFailure),
        ({"bundle": Path("/nowhere")}, "E-RAY-FOLDER", EnvironmentFailure),
        ({"source": Path("/nowhere")}, "E-RAY-FOLDER", EnvironmentFailure),
        ({"also": (Path("/nowhere"),)}, "E-RAY-FOLDER", EnvironmentFailure),
        ({"altered": True}, "E-", SafetyRefusal),
    ],
)
def test_an_error_of_a_worker_arrives_as_it_is(
    bundle: Path, source: Path, tmp_path: Path, change: dict[str, Any], code: str, kind: type[UserError]
) -> None:
    job = _job(bundle, source, tmp_path / "out")
    if change.get("altered"):
        altered = tmp_path / "bundle"
        altered.mkdir()
        for path in bundle.iterdir():
            (altered / path.name).write_bytes(path.read_bytes())
        weights = next(altered.glob("*.safetensors"))
        weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
        change = {"bundle": altered}
    of_part = {name: value for name, value in change.items() if name in ("version", "talk")}
    part = replace(_part(job), **of_part, job=replace(job, **{k: v for k, v in change.items() if k not in of_part}))
    heard = cluster._Heard()
    heard.add(_told(0, part))
    (error,) = heard.errors
    assert type(error) is kind and error.code.startswith(code)
    assert (part.version == __version__) or "install the same version" in error.remedy


def test_a_defect_in_a_worker_keeps_its_traceback(
    bundle: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Work, "run", lambda *arguments: 1 / 0)
    heard = cluster._Heard()
    heard.add(_told(0, _part(_job(bundle, source, tmp_path / "out"))))
    with pytest.raises(RuntimeError, match=r"(?s)in worker 0:.*ZeroDivisionError"):
        cluster._result(heard, [])


def test_a_request_to_stop_ends_a_worker_between_batches(
    bundle: Path, source: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = _part(_job(bundle, source, tmp_path / "out"))
    (part.talk / STOP).touch()
    real, before = Work.run, signal.getsignal(signal.SIGTERM)

    def run_when_told(self: Work, planned: Any, pool: Any, progress: Any, caught: list[int]) -> None:
        while not caught:  # the request is seen now and then
            threading.Event().wait(0.01)
        real(self, planned, pool, progress, caught)

    monkeypatch.setattr(Work, "run", run_when_told)
    assert _told(0, part) == {"rank": 0, "interrupted": signal.SIGTERM}
    assert signal.getsignal(signal.SIGTERM) == before
    assert not read_ledger(part.job.out / "cases.jsonl")
    monkeypatch.undo()
    (part.talk / STOP).unlink()
    assert "summary" in _told(0, part)
    assert untimed(part.job.out, LOG) == untimed(whole, LOG)


def test_one_failure_stops_the_others_and_is_the_one_that_is_told(tmp_path: Path) -> None:
    """The others wait for a worker that is gone, and say so; the first to fail says why."""

    def told() -> Any:
        yield json.dumps({"rank": 1, "error": ["E-X", "cause", "remedy"], "where": "", "exit_code": 6})
        while not (tmp_path / STOP).exists():
            threading.Event().wait(0.01)
        yield json.dumps({"rank": 0, "error": ["E-PRE-SHARD", "consequence", "remedy"], "where": "", "exit_code": 5})

    heard = cluster._follow(told(), tmp_path, Console(file=io.StringIO()), [])
    with pytest.raises(SafetyRefusal, match="cause"):
        cluster._result(heard, [])


def test_a_signal_stops_all_and_is_told_as_one_process_would(tmp_path: Path) -> None:
    def told() -> Any:
        while not (tmp_path / STOP).exists():
            threading.Event().wait(0.01)
        for rank in (0, 1):
            yield json.dumps({"rank": rank, "interrupted": signal.SIGTERM})

    heard = cluster._follow(told(), tmp_path, Console(file=io.StringIO()), [signal.SIGINT])
    with pytest.raises(TrainingInterrupted) as caught:
        cluster._result(heard, [signal.SIGINT])
    assert caught.value.exit_code == 130


def test_a_dead_worker_is_an_error_of_the_machine(tmp_path: Path) -> None:
    def told() -> Any:
        raise RuntimeError("killed\nat length")
        yield

    heard = cluster._follow(told(), tmp_path, Console(file=io.StringIO()), [])
    with pytest.raises(EnvironmentFailure, match=r"E-RAY-WORKER.*killed"):
        cluster._result(heard, [])


def test_how_far_the_first_worker_is_is_shown_line_by_line(tmp_path: Path) -> None:
    shown = io.StringIO()
    console, log = Console(file=shown, width=80), tmp_path / LOG
    assert cluster._show(log, 0, console) == 0
    log.write_bytes(b"1/2 images\n2/2 im")
    assert cluster._show(log, 0, console) == 11
    log.write_bytes(b"1/2 images\n2/2 images\n")
    assert cluster._show(log, 11, console) == 11
    assert shown.getvalue() == "1/2 images\n2/2 images\n"


def test_what_a_killed_command_left_is_removed_and_the_folder_of_one_that_waits_stays(tmp_path: Path) -> None:
    killed, older = tmp_path / ".ray-0", tmp_path / ".ray-1"
    for folder, name in ((killed, "lock"), (older, LOG)):
        folder.mkdir()
        (folder / name).touch()
    with cluster._talk(tmp_path) as waits:
        assert set(tmp_path.iterdir()) == {waits}
        with cluster._talk(tmp_path) as other:
            assert set(tmp_path.iterdir()) == {waits, other}
    assert not list(tmp_path.iterdir())


def test_a_request_to_stop_waits_for_a_disk_that_is_full(tmp_path: Path) -> None:
    """As long as it cannot be written, the workers go on; the command does not end before them."""
    talk = tmp_path / "none yet"

    def told() -> Any:
        talk.mkdir()
        while not (talk / STOP).exists():
            threading.Event().wait(0.01)
        yield json.dumps({"rank": 0, "interrupted": signal.SIGTERM})

    heard = cluster._follow(told(), talk, Console(file=io.StringIO()), [signal.SIGTERM])
    with pytest.raises(TrainingInterrupted):
        cluster._result(heard, [signal.SIGTERM])


def test_a_cluster_that_does_not_answer_is_asked_once_and_what_began_it_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By Ray itself twenty times, 40 s each; and a refused token is told as a failed connection."""
    asked: list[str] = []

    def init(**options: Any) -> None:
        asked.append(cluster_ray.os.environ["RAY_gcs_server_port_wait_time_s"])
        try:
            raise RuntimeError("Failed to connect to GCS: Traceback\n  File\nAuthenticationError: token is missing")
        except RuntimeError as error:
            raise ConnectionError(f"Failed to connect to {options['address']}") from error

    before = dict(cluster_ray.os.environ)
    ray = SimpleNamespace(init=init, shutdown=lambda: asked.append("shut down"))
    monkeypatch.setattr(cluster_ray, "_library", lambda: ray)
    said = r"E-RAY-START head:6379: .*connect to head:6379 \(AuthenticationError: token is missing\) — .*RAY_AUTH_TOKEN"
    with pytest.raises(EnvironmentFailure, match=said), cluster_ray.connected(Cluster(2, "head:6379")):
        raise AssertionError
    assert asked == ["1", "shut down"]
    assert dict(cluster_ray.os.environ) == before


def test_ray_is_not_left_before_its_own_thread_has_ended(bundle: Path, source: Path, tmp_path: Path) -> None:
    """On a busy machine it asks Ray once more after the last result, and Ray aborts a process that it has left."""
    joined = threading.Event()

    class Executor(threading.Thread):
        def join(self, timeout: float | None = None) -> None:
            joined.set()
            super().join(timeout)

    thread = Executor(target=joined.wait, name="StreamingExecutor-dataset", daemon=True)

    def iter_batches(**options: Any) -> Iterator[dict[str, list[str]]]:
        thread.start()
        yield {"told": ["a"]}

    told = SimpleNamespace(map_batches=lambda *arguments, **more: SimpleNamespace(iter_batches=iter_batches))
    context = SimpleNamespace(get_current=SimpleNamespace)
    data = SimpleNamespace(
        DataContext=context, from_items=lambda *arguments, **more: told, TaskPoolStrategy=SimpleNamespace
    )
    part = _part(_job(bundle, source, tmp_path / "out"))
    found = cluster_ray.Places({"CPU": 1.0}, None, 1)
    assert list(cluster_ray.lines(SimpleNamespace(data=data), part, found)) == ["a"]
    assert not thread.is_alive()


@pytest.mark.parametrize(
    ("has", "device", "use"),
    [
        ({"CPU": 2.0}, "auto", {"CPU": 1.0}),
        ({"CPU": 8.0, "GPU": 1.0}, "auto", {"CPU": 1.0}),  # not one for each
        ({"CPU": 8.0, "GPU": 2.0}, "auto", {"CPU": 1.0, "GPU": 1.0}),
        ({"CPU": 8.0, "GPU": 2.0}, "cpu", {"CPU": 1.0}),
        ({"CPU": 8.0, "GPU": 2.0}, "cuda", {"CPU": 1.0, "GPU": 1.0}),
    ],
)
def test_each_worker_takes_a_gpu_where_all_can(has: dict[str, float], device: str, use: dict[str, float]) -> None:
    assert cluster_ray._use(has, 2, device) == use


def test_more_workers_than_the_cluster_has_places_for_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EnvironmentFailure, match=r"2 workers need 2 GPU, the cluster has 1 — give --ray 1 or less"):
        cluster_ray._use({"CPU": 2.0, "GPU": 1.0}, 2, "cuda")
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    with pytest.raises(EnvironmentFailure, match=r"2 workers need 8 CPU, the cluster has 6 — give --ray 1 or less"):
        cluster_ray._use({"CPU": 6.0}, 2, "cpu")


# With Ray


@needs_ray
@pytest.mark.slow
def test_a_ray_of_its_own_writes_the_bytes_of_one_process(
    bundle: Path,
    source: Path,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """And nobody else can reach it, and nothing is left of it."""
    root = Path(tempfile.mkdtemp(prefix="r", dir="/tmp"))  # short: sockets lie in it
    monkeypatch.setenv("RAY_TMPDIR", str(root))
    listening, modes, real = set[str](), set[int](), cluster_ray.places

    def places(*arguments: Any) -> Any:
        for child in psutil.Process().children(recursive=True):
            found = child.net_connections("inet") if child.status() != psutil.STATUS_ZOMBIE else []
            listening.update(each.laddr.ip for each in found if each.status == psutil.CONN_LISTEN)
        modes.update(path.stat().st_mode & 0o777 for path in root.iterdir())
        return real(*arguments)

    monkeypatch.setattr(cluster, "places", places)
    monkeypatch.chdir(tmp_path)
    assert _command(bundle, source, Path("out"), "--ray", "2") == 3
    assert untimed(tmp_path / "out", LOG) == untimed(whole, LOG)
    assert listening and all(address.removeprefix("::ffff:").startswith("127.") for address in listening)
    assert modes == {0o700}
    root.rmdir()  # nothing is left in it
    assert not [path for path in (tmp_path / "out").glob(".*") if path.name != ".lock"]
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["processes"] == 2
    said = capsys.readouterr()
    assert "9 of 10 inputs have a result: out/predictions.csv" in said.out
    assert "images" in said.err


@needs_ray
@pytest.mark.slow
def test_a_worker_that_is_killed_ends_the_job_and_the_next_run_goes_on(
    bundle: Path, source: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ended = threading.Event()

    def kill() -> None:
        while not ended.is_set():
            for child in psutil.Process().children(recursive=True):
                if child.name().startswith("ray::MapBatches"):
                    child.kill()
                    return

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        assert _command(bundle, source, tmp_path / "out", "--ray", "2") == 5
    finally:
        ended.set()
        killer.join()
    assert "E-RAY-WORKER" in capsys.readouterr().err
    assert _command(bundle, source, tmp_path / "out") == 3
    assert untimed(tmp_path / "out", LOG) == untimed(whole, LOG)


@pytest.fixture
def machines(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A cluster of two nodes with one place each, a stand-in for two machines."""
    root = tempfile.mkdtemp(prefix="r", dir="/tmp")  # short: sockets lie in it
    token = cluster_ray._token()  # Ray keeps the first one of a process
    variables = {"RAY_TMPDIR": root, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token, "RAY_USAGE_STATS_ENABLED": "0"}
    for name, value in (variables | {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}).items():
        monkeypatch.setenv(name, value)
    from ray.cluster_utils import Cluster as Machines

    node = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": cluster_ray._STORE}
    started = Machines(initialize_head=True, head_node_args=node)
    try:
        started.add_node(**node)
        yield started
    finally:
        started.shutdown()
        shutil.rmtree(root, ignore_errors=True)


@needs_ray
@pytest.mark.slow
def test_a_cluster_that_exists_is_used_on_all_its_machines_and_left_running(
    bundle: Path, source: Path, whole: Path, tmp_path: Path, machines: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    address = ("--ray-address", machines.address)
    assert _command(bundle, source, tmp_path / "none", "--ray", "3", *address) == 5
    assert "3 workers need 3 CPU, the cluster has 2 — give --ray 2 or less" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
    assert _command(bundle, source, tmp_path / "out", "--ray", "2", *address) == 3
    assert "at most 1 on a machine" in capsys.readouterr().err
    assert untimed(tmp_path / "out", LOG) == untimed(whole, LOG)
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["processes"] == 2
    assert not [path for path in (tmp_path / "out").glob(".*") if path.name != ".lock"]
    assert len(nodes := machines.list_all_nodes()) == 2
    assert not any(node.dead_processes() for node in nodes)
