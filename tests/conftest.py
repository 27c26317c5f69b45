"""Tests use one thread, no network beyond this machine, and no folder of the user's."""

import os
import socket
import sys
import tempfile
from pathlib import Path

_CACHE = tempfile.mkdtemp(prefix="medmtl-tests-")
os.environ |= {
    "OMP_NUM_THREADS": "1",
    "MPLBACKEND": "Agg",
    "MPLCONFIGDIR": _CACHE,
    "HF_HOME": _CACHE,
    "HF_HUB_OFFLINE": "1",
    "TORCH_HOME": _CACHE,
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
}
for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MLFLOW_TRACKING_URI"):
    os.environ.pop(name, None)
sys.path.insert(0, str(Path(__file__).parent))  # for `laws`

import pytest  # noqa: E402
import torch  # noqa: E402

pytest.register_assert_rewrite("laws")
torch.set_num_threads(1)
_LOCAL = ("127.", "::1", "localhost")
_connect, _resolve = socket.socket.connect, socket.getaddrinfo


def _only_local(sock, address):
    if sock.family in (socket.AF_INET, socket.AF_INET6) and not str(address[0]).startswith(_LOCAL):
        raise PermissionError(f"a test tried to reach {address[0]!r}; tests have no network")
    return _connect(sock, address)


def _resolve_local(host, *arguments, **options):
    name = host.decode() if isinstance(host, bytes) else host
    if name not in (None, "", "0.0.0.0", "::", socket.gethostname()) and not name.startswith(_LOCAL):
        raise socket.gaierror(f"a test tried to look up {name!r}; tests have no network")
    return _resolve(host, *arguments, **options)


socket.socket.connect = _only_local
socket.getaddrinfo = _resolve_local


@pytest.fixture(autouse=True)
def _as_it_was():
    """Global state that a test could leave to the next: torch's generator and its number of threads."""
    before = torch.get_rng_state()
    yield
    torch.set_rng_state(before)
    torch.set_num_threads(1)
