"""What each target of the Dockerfiles promises, tried on a built one: docker/outside.py calls :func:`keep`."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ABSENT = ("mlflow", "torchjd", "matplotlib", "pytest")  # from the image for inference
STOP_S = 10.0  # that an engine waits before it kills
_READY_S = 300.0


@dataclass(frozen=True)
class Image:
    """A target as a container would find it; paths are this machine's."""

    folder: Path
    environment: Mapping[str, str]
    entrypoint: tuple[str, ...]
    command: tuple[str, ...]
    place: Path
    user: int

    @property
    def python(self) -> str:
        return str(self.folder / "opt/medmtl/bin/python")

    def start(
        self, words: Sequence[str | Path], *, network: bool = False, home: Path, **more: str
    ) -> "subprocess.Popen[str]":
        """A process as the image's user in its folder; it leads a group of its own."""
        return subprocess.Popen(
            [*self._as_inside(network=network), *map(str, words)],
            cwd=self.place,
            env={**self.environment, "HOME": str(home), "OMP_NUM_THREADS": "1", **more},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, words: Sequence[str | Path], *, home: Path, expect: int = 0) -> str:
        """What a command without a network says; its exit code must be the expected one."""
        process = self.start(words, home=home)
        said, _ = process.communicate(timeout=_READY_S)
        assert process.returncode == expect, (
            f"{' '.join(map(str, words))}: exit code {process.returncode}\n{said[-3000:]}"
        )
        return said

    def _as_inside(self, *, network: bool) -> list[str]:
        """Without a network, and as the user, who may read what a folder of this machine's root would hide."""
        if os.geteuid() != 0 or self.user == 0:
            return []
        caps = [f"--{kind}=-all,+dac_read_search" for kind in ("bounding-set", "inh-caps", "ambient-caps")]
        user = ["setpriv", "--reuid", str(self.user), "--regid", str(self.user), "--clear-groups", *caps]
        apart = [] if network else ["unshare", "--net"]
        return [*(apart if _works(apart) else []), *(user if _works(user) else [])]


def _works(prefix: Sequence[str]) -> bool:
    """Whether this machine lets us."""
    if prefix and shutil.which(prefix[0]) and subprocess.run([*prefix, "true"], capture_output=True).returncode == 0:
        return True
    if prefix:
        print(f"  not tried: {prefix[0]} does not work here", flush=True)
    return False


def keep(target: str, image: Image) -> None:
    """Try every promise of a target; the first that is broken is an AssertionError."""
    for promise in PROMISES[target]:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            if os.geteuid() == 0:
                os.chown(folder, image.user, image.user)
            began = time.monotonic()
            said = promise(image, folder)
            title = promise.__name__.replace("_", " ")
            print(f"  {target}: {title}: {said} [{time.monotonic() - began:.0f} s]", flush=True)


def nobody_is_root_and_nothing_installed_can_be_changed(image: Image, folder: Path) -> str:
    assert image.user != 0
    code = """
import os, sys
assert os.geteuid() == int(sys.argv[1]), os.geteuid()
open(os.path.join(sys.argv[2], "own"), "w").close()
try:
    open(os.path.join(sys.prefix, "other"), "w").close()
except OSError:
    print("uid", os.geteuid())
else:
    raise SystemExit("the installation can be written to")
"""
    if os.geteuid() != 0:
        return "not tried: this machine's user cannot become another"
    return image.run([image.python, "-c", code, str(image.user), folder], home=folder).strip()


def it_starts(image: Image, folder: Path) -> str:
    return image.run([image.entrypoint[0], "--version"], home=folder).strip()


def what_predicting_does_not_need_is_not_there(image: Image, folder: Path) -> str:
    code = f"import importlib.util as u; found = [n for n in {ABSENT!r} if u.find_spec(n)]; assert not found, found"
    image.run([image.python, "-P", "-c", code], home=folder)
    return ", ".join(ABSENT)


_BUNDLE = """
import sys
from pathlib import Path
import torch
from medmtl.bundle import ModelSpec, save_bundle
from medmtl.data.synthetic.mitosis import write_mitosis_study
out = Path(sys.argv[1])
torch.manual_seed(0)
spec = ModelSpec.model_validate({
    "preprocess": {"window": [32, 32]}, "encoder": {"name": "test_efficientnet"},
    "tasks": {"grade": {"kind": "classification", "classes": ["low", "high"]},
              "gland": {"kind": "segmentation", "classes": ["background", "gland"], "decoder": {"width": 8}}}})
save_bundle(out / "bundle", spec, spec.build(), provenance={}, card="{bundle_id}")
write_mitosis_study(out / "study", cases=12, groups=9)
"""


def it_predicts_and_watches_with_a_check_that_tells(image: Image, folder: Path) -> str:
    """A drop folder, with the bundle and the pictures made inside: no result is missing, and SIGTERM is no failure."""
    image.run([image.python, "-P", "-c", _BUNDLE, folder], home=folder)
    medmtl, bundle, scans, out = *image.entrypoint, folder / "bundle", folder / "study/images", folder / "out"
    image.run([medmtl, "predict", bundle, scans, out], home=Path("/nowhere"))  # --read-only: nothing but /tmp
    image.run([medmtl, "watch-health", out], home=folder, expect=1)
    watcher = image.start([medmtl, "predict", bundle, scans, folder / "all", "--watch", "--settle", "1"], home=folder)
    with _ended(watcher):
        check = [*image.entrypoint, "watch-health", str(folder / "all")]
        _until(lambda: _taken(folder / "all") == 12, watcher)  # each picture is a study
        healthy = image.run(check, home=folder).strip()
        seconds, left = stopped(watcher)
        assert watcher.returncode == 0 and not left, (watcher.returncode, left)
        image.run(check, home=folder, expect=1)
    assert len(_rows(out)) == len(_rows(folder / "all")) == 12
    return f"12 of 12, twice; {healthy}; SIGTERM took {seconds:.1f} s"


def _rows(out: Path) -> list[str]:
    """The rows of the results that there are until now."""
    table = out / "predictions.csv"
    return table.read_text(encoding="utf-8").splitlines()[1:] if table.exists() else []


def _taken(out: Path) -> int:
    """Studies that a watcher says it has taken."""
    beat = out / ".watch.json"
    return int(json.loads(beat.read_text(encoding="utf-8"))["studies"]) if beat.exists() else 0


def every_configuration_is_valid(image: Image, folder: Path) -> str:
    files = sorted(path for path in (image.place / "configs").glob("**/*.yaml") if path.parent.name != "sweeps")
    code = """
import sys
from medmtl.cli import run
for file in sys.argv[1:]:
    assert run(["config", file]) == 0, file
"""
    image.run([image.python, "-P", "-c", code, *files], home=folder)
    return f"{len(files)} files"


def it_trains_and_predicts_what_it_trained(image: Image, folder: Path) -> str:
    """One epoch on a study that is drawn inside, with a tracker, from the image's own folder; then its bundle."""
    image.run([image.python, "-P", "-c", _BUNDLE, folder], home=folder)
    (medmtl,) = image.entrypoint
    small = ["optim.epochs=1", "loader.batch_size=4", "loader.workers=0", "evaluation.gallery=0"]
    here = [f"data.manifest={folder / 'study/manifest.csv'}", f"tracking.uri=sqlite:///{folder / 'm.db'}"]
    command = [medmtl, "train", "configs/smoke/atypical_mitosis.yaml", "--runs", folder / "runs", *here, *small]
    image.run(command, home=folder)
    [bundle] = folder.glob("runs/*/bundle")
    image.run([medmtl, "predict", bundle, folder / "study/images", folder / "out"], home=folder)
    assert len(_rows(folder / "out")) == 12
    assert (folder / "m.db").exists()
    return "one epoch, 12 of 12 predicted"


_TRACK = """
import os, sys
from mlflow import MlflowClient
client = MlflowClient(sys.argv[1])
run = client.create_run(client.create_experiment("promise")).info.run_id
client.log_metric(run, "auroc", 0.75, step=3)
client.log_text(run, "what was kept", "notes/kept.txt")
client.set_terminated(run)
again = MlflowClient(sys.argv[1])
assert again.get_run(run).data.metrics == {"auroc": 0.75}
assert again.get_run(run).info.artifact_uri.startswith("mlflow-artifacts:"), again.get_run(run).info.artifact_uri
with open(again.download_artifacts(run, "notes/kept.txt")) as stream:
    assert stream.read() == "what was kept"
client.delete_experiment(again.get_run(run).info.experiment_id)
"""
_POSTGRES = """
import sqlalchemy
sqlalchemy.create_engine("postgresql+psycopg2://mlflow@127.0.0.1/mlflow")  # its driver is loaded, nothing is connected
"""


def it_serves_keeps_and_stops(image: Image, folder: Path) -> str:
    """ENTRYPOINT and CMD on a free port; the data base is ``MLFLOW_BACKEND_STORE_URI``, else SQLite in a new folder."""
    image.run([image.python, "-P", "-c", _POSTGRES], home=folder)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = [port if word == "5000" else word for word in (*image.entrypoint, *image.command)]
    uri = image.environment.get("MLFLOW_BACKEND_STORE_URI", f"sqlite:///{folder / 'mlflow.db'}")
    url = f"http://127.0.0.1:{port}"
    server = image.start(command, network=True, home=folder, MLFLOW_BACKEND_STORE_URI=uri)
    began = time.monotonic()
    with _ended(server):
        _until(lambda: _answer(f"{url}/health") == 200, server)
        ready = time.monotonic() - began
        client = image.start([image.python, "-P", "-c", _TRACK, url], network=True, home=folder)
        said, _ = client.communicate(timeout=_READY_S)
        assert client.returncode == 0, said[-3000:]
        assert list((image.folder / "artifacts").glob("**/kept.txt")), "the artifact is elsewhere"
        hosts = {
            host: _answer(f"{url}/api/2.0/mlflow/experiments/search?max_results=1", host)
            for host in ("mlflow:5000", "localhost:5000", "evil.example")
        }
        memory = sum(_resident(pid) for pid in group(server.pid)) / 2**20
        count = len(group(server.pid))
        seconds, left = stopped(server)
    assert hosts["localhost:5000"] == 200 and hosts["evil.example"] == 403, hosts
    assert seconds < STOP_S, f"SIGTERM took {seconds:.1f} s"
    kind = uri.partition(":")[0]
    end = f"SIGTERM took {seconds:.1f} s, left {left}"
    return f"{kind}, ready in {ready:.0f} s, {count} processes, {memory:.0f} MiB, hosts {hosts}, {end}"


def group(leader: int) -> list[int]:
    """The processes of a group that have not ended."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, of = path.read_text().rpartition(")")[2].split()[:3]
            if int(of) == leader and state != "Z":
                found.append(int(path.parent.name))
    return found


def stopped(process: "subprocess.Popen[str]") -> tuple[float, list[int]]:
    """``(seconds, who is left of its group)`` after SIGTERM to the first process alone, as an engine sends it."""
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=3 * STOP_S)
    return time.monotonic() - began, group(process.pid)


@contextlib.contextmanager
def _ended(process: "subprocess.Popen[str]") -> Iterator[None]:
    """Nothing of a process outlives the block."""
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def _until(holds: Callable[[], bool], process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + _READY_S
    while not holds():
        if process.poll() is not None or time.monotonic() > deadline:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise AssertionError(f"not ready: {process.communicate()[0][-3000:]}")
        time.sleep(0.5)


def _answer(url: str, host: str | None = None) -> int:
    """The HTTP status, 0 if nobody answers."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    request = urllib.request.Request(url, headers={} if host is None else {"Host": host})
    try:
        with opener.open(request, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def _resident(pid: int) -> int:
    """Bytes of memory of a process; shared pages count in each."""
    with contextlib.suppress(OSError, IndexError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


Promise = Callable[[Image, Path], str]
PROMISES: Mapping[str, tuple[Promise, ...]] = {
    "inference": (
        it_starts,
        nobody_is_root_and_nothing_installed_can_be_changed,
        what_predicting_does_not_need_is_not_there,
        it_predicts_and_watches_with_a_check_that_tells,
    ),
    "training": (
        it_starts,
        nobody_is_root_and_nothing_installed_can_be_changed,
        every_configuration_is_valid,
        it_trains_and_predicts_what_it_trained,
    ),
    "mlflow": (it_starts, nobody_is_root_and_nothing_installed_can_be_changed, it_serves_keeps_and_stops),
}
