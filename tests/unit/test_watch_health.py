"""Laws of a watcher's sign of life: work beats, a hang and a death do not, and whoever asks need not load a network."""

import io
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jobs_made import GRADE, made_bundle
from rich.console import Console

from medmtl.cli import run
from medmtl.inference import heartbeat, inputs
from medmtl.inference.heartbeat import HEARTBEAT, SILENT_S, Beat, Heart, health, read_beat
from medmtl.inference.isolated import _TIMEOUT_S
from medmtl.inference.job import Job
from medmtl.inference.pipeline import predict
from medmtl.inference.watch import Clock, watch
from medmtl.io.raster import write_png
from medmtl.predictor import Predictor

NOW = 1_800_000_000.0


def _beat(**changes: Any) -> dict[str, Any]:
    heart = Beat(NOW, "waiting", 300.0, os.getpid(), heartbeat.socket.gethostname(), studies=3, ok=5, failed=1)
    return {**asdict(heart), **changes}


def _write(out: Path, tree: Any) -> Path:
    (out / HEARTBEAT).write_text(tree if isinstance(tree, str) else json.dumps(tree))
    return out


def test_a_fresh_beat_is_healthy_and_says_what_is_done(tmp_path: Path) -> None:
    found = health(_write(tmp_path, _beat()), now=NOW + 12)
    assert found.ok
    assert found.reason == "waiting, 3 studies taken, 5 inputs with a result, 1 without; last beat 12 s ago"


@pytest.mark.parametrize(("state", "silent_s"), [("waiting", 300.0), ("working", 1200.0)])
def test_silence_is_allowed_as_long_as_the_watcher_said(tmp_path: Path, state: str, silent_s: float) -> None:
    _write(tmp_path, _beat(state=state, silent_s=silent_s))
    assert health(tmp_path, now=NOW + silent_s).ok
    stale = health(tmp_path, now=NOW + silent_s + 1)
    assert not stale.ok and f"no beat for {silent_s + 1:.0f} s, {silent_s:.0f} s are allowed" in stale.reason
    assert not health(tmp_path, max_age_s=10, now=NOW + 11).ok
    assert health(tmp_path, max_age_s=5000, now=NOW + 4999).ok


def test_the_longest_step_that_ends_by_itself_is_no_hang() -> None:
    assert SILENT_S["working"] > _TIMEOUT_S


def test_a_beat_of_the_future_is_a_clock_that_was_set(tmp_path: Path) -> None:
    _write(tmp_path, _beat())
    assert health(tmp_path, now=NOW - 59).ok
    found = health(tmp_path, now=NOW - 3600)
    assert not found.ok and "3600 s in the future" in found.reason


def test_a_process_that_ended_is_noticed_at_once(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    waited = os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)  # ended, not collected: a zombie
    assert waited is not None
    _write(tmp_path, _beat(pid=ended.pid))
    for _ in range(2):
        found = health(tmp_path, now=NOW)
        assert not found.ok and f"process {ended.pid} has ended" in found.reason
        ended.wait()
    _write(tmp_path, _beat(pid=ended.pid, host="elsewhere"))  # whose processes cannot be seen
    assert health(tmp_path, now=NOW).ok
    assert not health(tmp_path, now=NOW + 301).ok


def test_a_watcher_that_was_stopped_is_not_healthy(tmp_path: Path) -> None:
    found = health(_write(tmp_path, _beat(state="stopped", silent_s=0.0)), now=NOW + 7)
    assert not found.ok and "stopped 7 s ago" in found.reason


@pytest.mark.parametrize(
    "content",
    [
        "", "{", "null", "[]", "7", "{}", '"x"', "\x00" * 9, "[" * 3000, "9" * 5000,
        _beat(time="now"), _beat(time=math.nan), _beat(time=math.inf), _beat(time=-1), _beat(time=True),
        _beat(pid=1.5), _beat(pid=-1), _beat(pid=10**30), _beat(ok=None), _beat(state="fine"), _beat(state=["waiting"]),
        _beat(host=3), _beat(more=1), {key: value for key, value in _beat().items() if key != "pid"},
    ],
)  # fmt: skip
def test_what_is_no_beat_is_unhealthy_with_a_reason(tmp_path: Path, content: Any) -> None:
    found = health(_write(tmp_path, content), now=NOW)
    assert not found.ok and HEARTBEAT in found.reason and "\n" not in found.reason


def test_no_file_a_folder_and_a_pipe_are_unhealthy(tmp_path: Path) -> None:
    assert "nothing watches" in health(tmp_path).reason and not health(tmp_path).ok
    assert not health(tmp_path / "nowhere").ok
    (tmp_path / "folder" / HEARTBEAT).mkdir(parents=True)
    assert not health(tmp_path / "folder").ok
    os.mkfifo(tmp_path / HEARTBEAT)
    assert not health(tmp_path).ok


def test_steps_in_quick_succession_leave_one_beat_and_a_turn_its_own(tmp_path: Path) -> None:
    now = [NOW]
    heart = Heart(tmp_path, lambda: now[0])

    def seen() -> tuple[float, str]:
        beat = read_beat(tmp_path / HEARTBEAT)
        assert isinstance(beat, Beat)
        return beat.time - NOW, beat.state

    heart.turn("waiting")
    now[0] += 3
    heart.step()
    heart.turn("waiting")
    assert seen() == (0, "waiting")
    heart.turn("working")
    assert seen() == (3, "working")
    now[0] += 5
    heart.step()
    assert seen() == (8, "working")
    now[0] += 1
    heart.took(7, 2)
    assert seen() == (9, "working") and health(tmp_path, now=NOW + 9).reason.startswith(
        "working, 1 studies taken, 7 inputs with a result, 2 without"
    )
    now[0] -= 3600  # the clock was set back
    heart.step()
    assert seen() == (9 - 3600, "working")


def test_a_disk_that_takes_nothing_ends_no_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    heart = Heart(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(heartbeat, "write_atomic", full)
        heart.turn("waiting")
    assert not health(tmp_path).ok
    heart.step()
    assert health(tmp_path).ok


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_bundle(tmp_path_factory.mktemp("bundle"), GRADE)


class Scene:
    """A watcher of ``in`` with time of its own; ``layer`` is called at the end of each layer that is computed."""

    def __init__(self, bundle: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.out, self.now = root / "out", NOW
        pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        write_png(root / "in" / "Doe^Jane" / "Doe^Jane.png", pixels)
        self.job = Job(bundle, root / "in", self.out, device="cpu")
        self.layers: list[bool] = []  # healthy after each
        self.left = 4
        self.patch = monkeypatch

    def health(self) -> heartbeat.Health:
        return health(self.out, now=self.now)

    def sleep(self, seconds: float) -> None:
        self.now += 6
        self.left -= 1
        if not self.left:
            os.kill(os.getpid(), signal.SIGTERM)

    def watch(self, layer: Callable[[], None]) -> None:
        real, hooked = Predictor.decode, []

        def decode(member: Predictor, *given: Any) -> Any:
            if not hooked:  # behind the watcher's hooks
                for module in member.model.modules():
                    hooked.append(module.register_forward_hook(lambda *_: layer()))
            return real(member, *given)

        self.patch.setattr(Predictor, "decode", decode)
        clock = Clock(lambda: self.now, self.sleep, lambda: self.now)
        watch(self.job, settle_s=5, clock=clock, console=Console(file=io.StringIO()))

    def slow(self) -> None:
        self.now += 1000
        self.layers.append(self.health().ok)


def test_a_study_of_many_hours_is_healthy_all_the_time(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = Scene(bundle, tmp_path, monkeypatch)
    scene.watch(scene.slow)
    assert len(scene.layers) > 20 and all(scene.layers)
    assert not scene.health().ok and "stopped" in scene.health().reason
    beat = read_beat(scene.out / HEARTBEAT)
    assert isinstance(beat, Beat) and (beat.studies, beat.ok, beat.failed) == (1, 1, 0)
    assert "Doe" not in (scene.out / HEARTBEAT).read_text()


def test_without_steps_of_layers_it_is_not(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Heart, "step", lambda heart: None)
    scene = Scene(bundle, tmp_path, monkeypatch)
    scene.watch(scene.slow)
    assert scene.layers[0] and not any(scene.layers[1:])


def test_a_layer_that_hangs_is_unhealthy(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(bundle, tmp_path, monkeypatch)
    found: list[heartbeat.Health] = []

    def hang() -> None:
        if not found:
            for seconds in (SILENT_S["working"], 5):
                scene.now += seconds
                found.append(scene.health())

    scene.watch(hang)
    assert [each.ok for each in found] == [True, False]
    assert "no beat for 1205 s, 1200 s are allowed (working, 0 studies taken" in found[1].reason


def test_a_folder_that_does_not_answer_is_unhealthy(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = Scene(bundle, tmp_path, monkeypatch)
    found: list[heartbeat.Health] = []

    def walk(root: Path) -> Any:
        if scene.left == 2:
            scene.now += 310
            found.append(scene.health())
        return real(root)

    real = inputs.walk
    monkeypatch.setattr(inputs, "walk", walk)
    scene.watch(lambda: None)
    assert len(found) == 1 and not found[0].ok and "(waiting" in found[0].reason


def test_listening_changes_no_bit(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(bundle, tmp_path, monkeypatch)
    scene.watch(lambda: None)
    predict(replace(scene.job, out=tmp_path / "alone"), console=Console(file=io.StringIO()))
    assert (scene.out / "predictions.csv").read_bytes() == (tmp_path / "alone" / "predictions.csv").read_bytes()


def test_the_command_says_one_line_and_its_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Heart(tmp_path).turn("waiting")
    assert run(["watch-health", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith("healthy: waiting, 0 studies taken")
    _write(tmp_path, _beat(time=1.0))
    assert run(["watch-health", str(tmp_path), "--max-age", "60"]) == 1
    out = capsys.readouterr().out
    assert out.startswith("unhealthy: no beat for ") and out.count("\n") == 1


def test_asking_loads_no_network(tmp_path: Path) -> None:
    Heart(tmp_path).turn("waiting")
    code = (
        "import sys; from medmtl.cli import run; code = run(sys.argv[1:]);"
        "heavy = {'torch', 'numpy', 'pandas', 'monai', 'pydicom', 'mlflow'} & set(sys.modules); print(sorted(heavy));"
        "sys.exit(code)"
    )
    command = [sys.executable, "-c", code, "watch-health", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "[]", done.stdout + done.stderr
