"""``medmtl doctor``: each check passes where all is well, and says what to do where it is not."""

import http.server
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from filelock import Timeout
from pydicom.uid import AllTransferSyntaxes

import medmtl
from medmtl import doctor
from medmtl.cli import doctor as _command  # noqa: F401 - registers the command
from medmtl.cli.app import run
from medmtl.doctor import Line, machine, software
from medmtl.doctor.store import store
from medmtl.engine.mlflow_store import database_utils
from medmtl.io.dicom import codecs as io_codecs

ROOT = str(Path(medmtl.__file__).parents[1])
NEWEST = database_utils._get_latest_schema_revision()
GIB = 2**30


def _verdicts(lines):
    return {line.name: line.verdict for line in lines}


def _only(lines):
    (line,) = lines
    assert bool(line.remedy) == (line.verdict != "PASS")
    return line


def test_what_this_machine_has_passes():
    lines = list(software.packages(["pydicom>=3.0", "numpy>=2,<3", 'nothing-like-it; extra == "bench"']))
    assert [line.verdict for line in lines] == ["PASS"] and "2 of 2" in lines[0].found and "pydicom 3" in lines[0].found


def test_a_package_that_is_missing_or_of_another_version_fails():
    *bad, counted = software.packages(["no-such-package>=1", "pydicom<2", "numpy"])
    assert [(line.name, line.verdict, line.remedy) for line in bad] == [
        ("package no-such-package", "FAIL", 'pip install "no-such-package>=1"'),
        ("package pydicom", "FAIL", 'pip install "pydicom<2"'),
    ]
    assert "medmtl needs <2" in bad[1].found and counted.found.startswith("1 of 3")


def test_every_transfer_syntax_is_accounted_for_once():
    said = "\n".join(f"{line.name} {line.found}" for line in software.codecs())
    assert [said.count(f"({uid})") for uid in AllTransferSyntaxes] == [1] * len(AllTransferSyntaxes)


def test_a_syntax_without_its_decoder_names_the_package(monkeypatch):
    before = _verdicts(software.codecs())
    absent = {"1.2.840.10008.1.2.4.80": "pyjpegls", "1.2.840.10008.1.2.4.90": "pylibjpeg-openjpeg"}
    decoders = {uid: SimpleNamespace(is_available=False, available_plugins=()) for uid in absent}
    real = io_codecs.get_decoder
    monkeypatch.setattr(io_codecs, "get_decoder", lambda uid: decoders.get(str(uid)) or real(uid))
    after = {line.name: line for line in software.codecs()}
    changed = {name: line for name, line in after.items() if before[name] != line.verdict}
    assert {line.remedy for line in changed.values()} == {f"pip install {name}" for name in absent.values()}
    assert {line.verdict for line in changed.values()} == {"FAIL"}


def test_a_torchvision_of_another_build_is_a_warning(monkeypatch):
    monkeypatch.setattr("medmtl.torchvision_ops.declare_missing", lambda: ())
    assert _only(software.torchvision()).verdict == "PASS"
    monkeypatch.setattr("medmtl.torchvision_ops.declare_missing", lambda: ("nms",))
    line = _only(software.torchvision())
    assert line.verdict == "WARN" and line.remedy.startswith("pip install --force-reinstall --no-deps torchvision")


@pytest.mark.parametrize(
    ("tool", "cuda", "verdict", "word"),
    [(None, None, "PASS", "CPU"), ("x", None, "WARN", "pip"), ("x", "12.8", "WARN", "update the driver")],
)
def test_a_driver_that_torch_does_not_use_is_a_warning(monkeypatch, tool, cuda, verdict, word):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(software.shutil, "which", lambda name: tool)
    line = _only(software.gpu())
    assert line.verdict == verdict and word in line.found + line.remedy


def test_a_device_that_does_not_compute_fails(monkeypatch):
    def broken(*shape, device):
        raise RuntimeError("no kernel image is available\nand more")

    about = SimpleNamespace(name="Card", total_memory=80 * GIB)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda n: about)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda n: (40 * GIB, 80 * GIB))
    monkeypatch.setattr(torch, "ones", broken)
    line = _only(software.gpu())
    assert line.verdict == "FAIL" and line.found.endswith("no kernel image is available")


@pytest.mark.parametrize(("limit", "used", "verdict"), [(32, 1, "PASS"), (8, 4, "WARN"), (4, 3, "FAIL")])
def test_a_container_s_memory_counts(monkeypatch, tmp_path, limit, used, verdict):
    there = SimpleNamespace(total=64 * GIB, available=60 * GIB)
    monkeypatch.setattr(machine.psutil, "virtual_memory", lambda: there)
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    assert _only(machine.memory()).found == "60.0 of 64.0 GiB free"
    (tmp_path / "memory.max").write_text(f"{limit * GIB}\n")
    (tmp_path / "memory.current").write_text(f"{used * GIB}\n")
    line = _only(machine.memory())
    assert line.verdict == verdict and line.found == f"{limit - used:.1f} of {limit:.1f} GiB free in this container"


def test_more_threads_than_a_container_allows_are_a_warning(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    assert next(iter(machine.threads())).verdict == "PASS"
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    line = next(iter(machine.threads()))
    assert line.verdict == "WARN" and line.remedy.startswith("set OMP_NUM_THREADS=1:")


@pytest.mark.parametrize(("free", "verdict"), [(64 * 2**20, "WARN"), (8 * GIB, "PASS")])
def test_the_shared_memory_of_a_container(monkeypatch, tmp_path, free, verdict):
    monkeypatch.setattr(machine, "_SHM", tmp_path)
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(free, 0, free))
    assert _only(machine.shared_memory()).verdict == verdict


@pytest.mark.parametrize(("free", "verdict"), [(0.5, "FAIL"), (5, "WARN"), (50, "PASS")])
def test_a_full_disk(monkeypatch, tmp_path, free, verdict):
    usage = shutil._ntuple_diskusage(100 * GIB, 0, int(free * GIB))
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: usage)
    assert next(iter(machine.disk(tmp_path))).verdict == verdict


def test_locks_that_hold_and_locks_that_do_not(monkeypatch, tmp_path):
    class Lax(machine.FileLock):
        def acquire(self, *arguments, **options):
            return self

    assert _only(machine.locks(tmp_path)).verdict == "PASS"
    monkeypatch.setattr(machine, "FileLock", Lax)
    assert _only(machine.locks(tmp_path)) == Line(
        "locks",
        "FAIL",
        "a file can be locked twice",
        "work in a folder on a local disk: two jobs here could write to the same files",
    )
    assert not list(tmp_path.iterdir())


def test_a_disk_without_locks_fails(monkeypatch, tmp_path):
    def refused(*arguments, **options):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(machine, "FileLock", refused)
    assert "not supported" in _only(machine.locks(tmp_path)).found
    assert issubclass(Timeout, TimeoutError)  # an OSError too: the good case must not land there


def _base(path, version):
    with sqlite3.connect(path) as base:
        base.execute("CREATE TABLE alembic_version (version_num VARCHAR(32))")
        base.execute("INSERT INTO alembic_version VALUES (?)", (version,))
    return f"sqlite:///{path}"


@pytest.mark.parametrize(
    ("version", "verdict", "words"),
    [
        (NEWEST, "PASS", "has the schema"),
        ("451aebb31d03", "WARN", "an older MLflow"),  # MLflow 1.0
        ("ffffffffffff", "FAIL", "a newer MLflow"),
    ],
)
def test_the_schema_of_a_data_base(tmp_path, version, verdict, words):
    line = _only(store(_base(tmp_path / "m.db", version)))
    assert line.verdict == verdict and words in line.found


def test_a_data_base_that_is_absent_foreign_or_damaged(tmp_path):
    uri = f"sqlite:///{tmp_path}/m.db"
    assert _only(store(uri)).verdict == "PASS" and not list(tmp_path.iterdir())  # looking makes none
    with sqlite3.connect(tmp_path / "m.db") as base:
        base.execute("CREATE TABLE other (n INT)")
    assert "no data base of MLflow" in _only(store(uri)).found
    (tmp_path / "m.db").write_bytes(b"no data base at all" * 100)
    assert _only(store(uri)).verdict == "FAIL"


@pytest.mark.parametrize(("status", "verdict"), [(200, "PASS"), (503, "FAIL")])
def test_a_server_that_answers(status, verdict):
    class Health(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status if self.path == "/health" else 404)
            self.end_headers()

        def log_message(self, *arguments):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Health) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        line = _only(store(f"http://127.0.0.1:{server.server_port}"))
        server.shutdown()
    assert line.verdict == verdict


def test_a_server_that_does_not_answer_and_a_password():
    line = _only(store("http://user:secret@127.0.0.1:9"))
    assert line.verdict == "FAIL" and "secret" not in str(line)


def test_a_check_that_fails_itself_does_not_end_the_others(monkeypatch, tmp_path):
    def broken():
        raise RuntimeError("surprise")

    monkeypatch.setattr(software, "packages", broken)
    lines = doctor.examine(tmp_path, uri=f"sqlite:///{tmp_path}/m.db")
    assert {line.name: line for line in lines}["packages"].verdict == "FAIL"
    assert _verdicts(lines)["MLflow"] == _verdicts(lines)["locks"] == "PASS" and doctor.exit_code(lines) == 5


def test_the_command(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(machine, "disk", lambda folder: [Line("disk here", "PASS", "10.0 GiB free")])
    monkeypatch.setattr(machine, "memory", lambda: [Line("memory", "WARN", "3 GiB", "end other programs")])
    monkeypatch.setattr(software, "packages", lambda: [])
    assert run(["doctor", "--json"]) == 0
    tree = json.loads(capsys.readouterr().out)
    assert tree["ok"] and tree["counts"]["FAIL"] == 0 and {"name": "disk here", "verdict": "PASS", "found": (
        "10.0 GiB free"), "remedy": ""} in tree["lines"]  # fmt: skip
    assert run(["doctor", "--uri", _base(tmp_path / "m.db", "ffffffffffff")]) == 5
    said = capsys.readouterr().out
    assert "WARN  memory: 3 GiB — end other programs\n" in said and "FAIL  MLflow: m.db was written" in said
    assert said.splitlines()[-1].endswith("1 FAIL")
    assert run(["doctor", "--uri", "file:///tmp/x"]) == 5  # a store that training would refuse is a line, too
    assert "FAIL  MLflow: MLflow's file store is switched off" in capsys.readouterr().out


def test_importing_it_loads_nothing_heavy():
    code = "import sys, medmtl.doctor; print([m for m in ('mlflow', 'torch', 'pydicom', 'numpy') if m in sys.modules])"
    env = {**os.environ, "PYTHONPATH": ROOT}
    assert subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True).stdout == "[]\n"
