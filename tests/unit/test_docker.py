"""What can be shown of the images without an engine: linted, valid, whole; inference needs no more than it has.

``docker/outside.py`` carries out their steps and ``docker/promises.py`` tries what comes of them; that takes an index
and minutes. What of these two needs neither is tested in test_docker_outside.py.
"""

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
import yaml

from medmtl.bundle import ModelSpec, save_bundle
from medmtl.cli.app import app
from medmtl.data.synthetic.mitosis import write_mitosis_study

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
FILES = ("Dockerfile", "Dockerfile.cpu")
FORBIDDEN = ("mlflow", "torchjd", "matplotlib", "cvxpy", "pyarrow", "pynvml")


def _names(path: Path) -> set[str]:
    """Packages of a requirements file, in one spelling."""
    lines = (line.partition("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return {re.split(r"[=<>\[]", line)[0].lower().replace("_", "-") for line in lines if line}


@pytest.mark.parametrize("name", FILES)
def test_hadolint_has_nothing_to_say(name: str) -> None:
    program = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{'/usr/local/bin'}:{'/usr/bin'}")
    if program is None:
        pytest.skip("hadolint is not here")
    done = subprocess.run([program, DOCKER / name], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_two_differ_in_the_device_alone() -> None:
    gpu, cpu = ((DOCKER / name).read_text(encoding="utf-8").splitlines() for name in FILES)
    steps = [
        [line for line in lines if not line.startswith(("#", "ARG TORCH_INDEX", "ENV NVIDIA"))] for lines in (gpu, cpu)
    ]
    assert steps[0] == steps[1]


def test_compose_is_valid_and_opens_loopback_alone() -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run([*command, DOCKER / "compose.yaml"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    services = yaml.safe_load((DOCKER / "compose.yaml").read_text(encoding="utf-8"))["services"]
    ports = [port for service in services.values() for port in service.get("ports", ())]
    assert ports and all(port.startswith("127.0.0.1:") for port in ports)
    watch = services["watch"]
    assert watch["network_mode"] == "none" and watch["read_only"] and watch["init"]
    assert [volume.rsplit(":", 1)[-1] == "ro" for volume in watch["volumes"]] == [True, True, False]
    assert all("healthcheck" in service for service in services.values())
    program, command, out = watch["healthcheck"]["test"][1:]
    names = {known.name or known.callback.__name__ for known in app.registered_commands if known.callback}
    assert (program, command) == ("medmtl", "watch-health") and command in names
    assert out == watch["command"][3] and "--watch" in watch["command"]
    tracking = services["mlflow"]["environment"]
    assert tracking["MLFLOW_BACKEND_STORE_URI"].startswith("postgresql+psycopg2://")  # SQLAlchemy would take another
    assert re.fullmatch(r"psycopg2-binary==[\d.]+\n", (DOCKER / "mlflow.txt").read_text(encoding="utf-8"))
    allowed = tracking["MLFLOW_SERVER_ALLOWED_HOSTS"].split(",")
    assert "mlflow:*" in allowed and "*" not in allowed
    for name in FILES:
        targets = re.findall(r"^FROM .+ AS (\S+)$", (DOCKER / name).read_text(encoding="utf-8"), flags=re.M)
        assert {service["build"]["target"] for service in services.values() if "build" in service} <= set(targets)
    given = set(re.findall(r"^(\w+)=", (DOCKER / "example.env").read_text(encoding="utf-8"), flags=re.M))
    asked = set(re.findall(r"\$\{(\w+)", (DOCKER / "compose.yaml").read_text(encoding="utf-8")))
    assert asked == given


def test_requirements_are_pinned_and_are_the_projects() -> None:
    tree = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    declared = {re.split(r"[=<>\[!]", item)[0].lower() for item in tree["project"]["dependencies"]}
    pinned = _names(ROOT / "constraints.txt")
    for name in ("torch.txt", "inference.txt"):
        assert _names(DOCKER / name) <= declared, name
        assert _names(DOCKER / name) <= pinned, name
    assert _names(DOCKER / "torch.txt") <= _names(DOCKER / "inference.txt")
    assert not _names(DOCKER / "inference.txt") & set(FORBIDDEN)


BLOCKED = """
import json, sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {forbidden!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocked())
from medmtl.cli import main
sys.argv = ["medmtl", "predict", *{arguments!r}]
try:
    main()
except SystemExit as stop:
    assert not stop.code, stop.code
print(json.dumps(sorted({{name.split(".")[0] for name in sys.modules}})))
"""


@pytest.mark.slow
def test_prediction_needs_nothing_that_the_image_for_inference_lacks(tmp_path: Path) -> None:
    """A real job in a process that cannot import what is left out, and what it did import is on the list."""
    torch.manual_seed(0)
    tasks = {
        "grade": {"kind": "classification", "classes": ["low", "high"]},
        "gland": {"kind": "segmentation", "classes": ["background", "gland"], "decoder": {"width": 8}},
    }
    spec = ModelSpec.model_validate(
        {"preprocess": {"patches": {"size": [32, 32]}}, "encoder": {"name": "test_efficientnet"}, "tasks": tasks}
    )
    save_bundle(tmp_path / "bundle", spec, spec.build(), provenance={}, card="{bundle_id}")
    write_mitosis_study(tmp_path / "study", cases=12, groups=9)
    arguments = [str(tmp_path / "bundle"), str(tmp_path / "study" / "images"), str(tmp_path / "out"), "--device", "cpu"]
    code = BLOCKED.format(forbidden=FORBIDDEN, arguments=arguments)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "out" / "predictions.csv").is_file()
    imported = set(json.loads(done.stdout.splitlines()[-1]))
    import_names = {
        "monai": "monai",
        "timm": "timm",
        "safetensors": "safetensors",
        "pandas": "pandas",
        "nibabel": "nibabel",
    }
    assert set(import_names) <= imported  # the test would see what is imported
    undeclared = {"sklearn": "scikit-learn", "PIL": "pillow", "yaml": "pyyaml", "SimpleITK": "simpleitk"}
    listed = _names(DOCKER / "inference.txt")
    assert all(package in listed for module, package in undeclared.items() if module in imported)
