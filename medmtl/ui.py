"""MLflow's web page over the runs of this machine: for this machine only, and gone when it is stopped."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import BinaryIO

import psutil
from filelock import FileLock
from rich.console import Console

from medmtl.errors import EnvironmentFailure, SafetyRefusal

LOOPBACK = ("127.0.0.1", "localhost", "::1")
_SETTINGS = {
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # 7 background processes, 1.6 GB, which outlive the server
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}
_START_S, _STOP_S = 180.0, 10.0


def serve(
    uri: str,
    *,
    artifacts: str | None = None,
    port: int = 5000,
    host: str = "127.0.0.1",
    allow_network: bool = False,
    allowed_hosts: Sequence[str] = (),
    console: Console | None = None,
) -> None:
    """Show the runs of ``uri`` until Ctrl-C or SIGTERM, then stop every process that was started.

    ``uri`` and ``artifacts`` are those of ``TrackingConfig.places()``. MLflow asks nobody for a password, so any
    ``host`` but this machine is refused unless ``allow_network``; then ``allowed_hosts`` are the names users type.
    """
    console = console or Console(stderr=True)
    with (
        _sigterm_interrupts(),
        contextlib.suppress(KeyboardInterrupt),
        running(
            uri,
            artifacts=artifacts,
            port=port,
            host=host,
            allow_network=allow_network,
            allowed_hosts=allowed_hosts,
            console=console,
        ) as (url, server),
    ):
        console.print(f"MLflow: {url}   (Ctrl-C stops it)", highlight=False)
        server.wait()
        raise EnvironmentFailure(
            "E-UI-ENDED", f"the server ended by itself (exit code {server.returncode})", "start it again", where=url
        )
    console.print("MLflow stopped", highlight=False)


@contextlib.contextmanager
def running(
    uri: str,
    *,
    artifacts: str | None = None,
    port: int = 5000,
    host: str = "127.0.0.1",
    allow_network: bool = False,
    allowed_hosts: Sequence[str] = (),
    console: Console | None = None,
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """``(URL, process)`` of a server that answers; when the block ends its whole process group is gone."""
    console = console or Console(stderr=True)
    if host not in LOOPBACK and not allow_network:
        raise SafetyRefusal(
            "E-UI-NETWORK",
            f"{host} can be reached from the network, and MLflow asks for no password",
            "use 127.0.0.1 and an SSH tunnel, or allow it explicitly",
            where="host",
        )
    free = _free_port(host, port)
    if free != port:
        console.print(f"port {port} is in use; using {free}", highlight=False)
    url = f"http://{'localhost' if host in ('0.0.0.0', '::') else f'[{host}]' if ':' in host else host}:{free}"
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--backend-store-uri",
        uri,
        "--host",
        host,
        "--port",
        str(free),
        "--workers",
        "1",
    ]
    if artifacts is not None:
        command += ["--artifacts-destination", artifacts, "--default-artifact-root", artifacts]
    if allowed_hosts:
        command += [
            "--allowed-hosts",
            ",".join([*LOOPBACK, *(f"{LOOPBACK[0]}:{free}", f"{LOOPBACK[1]}:{free}"), *allowed_hosts]),
        ]
    # The data base may be new: a training that starts meanwhile waits for this lock, as we wait for its.
    with tempfile.TemporaryFile() as output:
        server: subprocess.Popen[bytes] | None = None
        try:
            with _store_lock(uri):
                server = subprocess.Popen(
                    command,
                    env={**os.environ, **_SETTINGS},
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
                _wait_healthy(server, url, output, console)
            yield url, server
        finally:
            if server is not None:
                stop_group(server)


def stop_group(server: subprocess.Popen[bytes]) -> None:
    """End every process of the server's group, politely and after ten seconds by force, and wait until none is left.

    A second Ctrl-C does not wait for the polite part.
    """
    with contextlib.suppress(KeyboardInterrupt):
        _end(server, signal.SIGTERM)
    if members(server.pid):
        _end(server, signal.SIGKILL)
    server.wait()


def _end(server: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, number)
    deadline = time.monotonic() + _STOP_S
    while members(server.pid) and time.monotonic() < deadline:
        server.poll()
        time.sleep(0.05)


def members(group: int) -> list[int]:
    """The processes of a group, without those that have ended and only wait to be collected."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(OSError, psutil.Error):
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
    return found


def _wait_healthy(server: subprocess.Popen[bytes], url: str, output: BinaryIO, console: Console) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a hospital's proxy cannot see localhost
    deadline = time.monotonic() + _START_S
    with console.status("starting MLflow …"):
        while time.monotonic() < deadline and server.poll() is None:
            with contextlib.suppress(OSError, urllib.error.URLError), opener.open(f"{url}/health", timeout=2) as answer:
                if answer.status == 200:
                    return
            time.sleep(0.2)
    output.seek(0)
    lines = output.read().decode(errors="replace").strip().splitlines()
    reason = lines[-1].strip() if lines else "no message"
    what = f"it ended ({reason})" if server.poll() is not None else f"no answer after {_START_S:.0f} s ({reason})"
    raise EnvironmentFailure(
        "E-UI-START", f"the MLflow server did not start: {what}", "check the data base and the port", where=url
    )


def _free_port(host: str, first: int) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for port in range(first, min(first + 50, 65536)):
        with socket.socket(family, socket.SOCK_STREAM) as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            return port
    raise EnvironmentFailure("E-UI-PORT", f"no free port from {first} on", "choose another port", where=host)


@contextlib.contextmanager
def _store_lock(uri: str) -> Iterator[None]:
    if not uri.startswith("sqlite:///"):
        yield
        return
    database = Path(uri.removeprefix("sqlite:///")).absolute()
    database.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{database}.lock", timeout=300):
        yield


@contextlib.contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """SIGTERM ends the block as Ctrl-C does, so that the server is stopped either way."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
