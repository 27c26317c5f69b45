"""The web page answers on this machine only, and nothing of it is left when it stops."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

import medmtl
from medmtl import ui
from medmtl.errors import SafetyRefusal

ROOT = str(Path(medmtl.__file__).parents[1])


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.5", "myhost"])
def test_any_other_host_is_refused_before_anything_starts(host, tmp_path):
    with pytest.raises(SafetyRefusal, match="E-UI-NETWORK"):
        ui.serve(f"sqlite:///{tmp_path}/m.db", host=host)
    assert not list(tmp_path.iterdir())


def test_importing_it_loads_nothing_heavy():
    code = "import sys, medmtl.ui; print([m for m in ('mlflow', 'torch', 'pandas', 'numpy') if m in sys.modules])"
    env = {**os.environ, "PYTHONPATH": ROOT}
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env).stdout.strip() == "[]"


@pytest.mark.slow
def test_it_serves_and_sigterm_leaves_nothing(tmp_path):
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        code = f"from medmtl import ui; ui.serve('sqlite:///{tmp_path}/m.db', port={port})"
        env = {**os.environ, "PYTHONPATH": ROOT, "COLUMNS": "200"}
        with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, env=env) as process:
            try:
                lines = []
                while "MLflow: http" not in (lines[-1:] or [""])[0]:
                    lines.append(process.stderr.readline())
                    assert lines[-1], lines
                url = lines[-1].split()[1]
                assert any(f"port {port} is in use" in line for line in lines)
                assert not url.endswith(f":{port}")
                assert urllib.request.urlopen(f"{url}/health", timeout=10).read() == b"OK"
                assert b"<html" in urllib.request.urlopen(url, timeout=10).read().lower()
                group = next(pid for pid in _children(process.pid))
                assert ui.members(group)
                began = time.monotonic()
                process.send_signal(signal.SIGTERM)
                assert process.wait(timeout=25) == 0
                print(f"stopped in {time.monotonic() - began:.1f} s")
                assert ui.members(group) == []
            finally:
                process.kill()


def _children(pid: int) -> list[int]:
    import psutil

    return [child.pid for child in psutil.Process(pid).children()]
