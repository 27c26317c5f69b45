"""Run the steps of a target of a Dockerfile without a container engine, and try what it would start.

    python docker/outside.py docker/Dockerfile.cpu inference /tmp/image [--arg TORCH_INDEX=]

COPY and RUN of the target and of the stages that it is made of are carried out one after the other with the image's
paths below the given folder; users are not created and ENV is passed on. Ends with the entrypoint's ``--version`` and,
for `inference`, the proof that neither MLflow nor training's libraries are there. Needs the package index.
"""

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
INSIDE = ("/opt/medmtl", "/src", "/study", "/output", "/input", "/artifacts", "/tmp")
ABSENT = ("mlflow", "torchjd", "matplotlib", "pytest")


@dataclass
class Stage:
    """A stage of a Dockerfile: what it begins with, and its instructions."""

    name: str
    base: str
    steps: list[tuple[str, str]] = field(default_factory=list)  # (instruction, text)


def stages(dockerfile: Path) -> dict[str, Stage]:
    """Every stage by name; continued lines joined, comments dropped."""
    lines = [line for line in dockerfile.read_text().splitlines() if not line.lstrip().startswith("#")]
    found: dict[str, Stage] = {}
    current: Stage | None = None
    for line in re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines():
        word, _, rest = line.strip().partition(" ")
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            current = found[name] = Stage(name, base)
        elif word and current is not None:
            current.steps.append((word, rest))
    return found


def lineage(found: dict[str, Stage], name: str) -> Iterator[Stage]:
    """The stages that a target is made of, in the order in which they are built: bases, and what is copied from."""
    stage = found[name]
    if stage.base in found:
        yield from lineage(found, stage.base)
    for word, rest in stage.steps:
        if word == "COPY" and (source := re.match(r"--from=(\S+)", rest)):
            yield from lineage(found, source[1])
    yield stage


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dockerfile", type=Path)
    parser.add_argument("target")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--arg", action="append", default=[], metavar="NAME=VALUE")
    args = parser.parse_args()
    shutil.rmtree(args.folder, ignore_errors=True)
    folder = args.folder.resolve()
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL"))}
    given = dict(item.split("=", 1) for item in args.arg)
    entry: list[str] = []
    done: set[str] = set()
    for stage in lineage(stages(args.dockerfile), args.target):
        if stage.name in done:
            continue
        done.add(stage.name)
        place = folder / "src"
        for word, rest in stage.steps:
            match word:
                case "ARG":
                    name, _, default = rest.partition("=")
                    environment[name] = given.get(name, default)
                case "ENV":
                    for pair in shlex.split(rest):
                        name, _, value = pair.partition("=")
                        value = value.replace("$PATH", environment["PATH"])
                        environment[name] = _moved(value, folder)
                case "WORKDIR":
                    place = folder / rest.lstrip("/")
                    place.mkdir(parents=True, exist_ok=True)
                case "COPY" if "--from" not in rest:
                    _copy([part for part in rest.split() if not part.startswith("--")], place, folder)
                case "RUN":
                    command = _moved(rest, folder)
                    command = re.sub(r"useradd [^&]*&& ", "", command).replace("-o medmtl -g medmtl ", "")
                    print(f"[{stage.name}] {command}", flush=True)
                    place.mkdir(parents=True, exist_ok=True)
                    subprocess.run(["/bin/sh", "-ec", command], cwd=place, env=environment, check=True)
                case "ENTRYPOINT":
                    entry = json.loads(rest)
    program = shutil.which(entry[0], path=environment["PATH"])
    assert program is not None and Path(program).is_relative_to(folder), f"{entry[0]} is {program}"
    subprocess.run([program, "--version"], env=environment, cwd=folder, check=True)
    if args.target == "inference":
        code = f"import importlib.util as u; found = [n for n in {ABSENT!r} if u.find_spec(n)]; assert not found, found"
        subprocess.run([folder / "opt/medmtl/bin/python", "-P", "-c", code], env=environment, cwd=folder, check=True)
    print(f"{args.target}: every step ran; {program} starts", file=sys.stderr)


def _moved(text: str, folder: Path) -> str:
    """Absolute paths of the image as paths below ``folder``."""
    return re.sub(rf"(?<![\w./-])({'|'.join(map(re.escape, INSIDE))})(?![\w-])", rf"{folder}\1", text)


def _copy(parts: list[str], place: Path, folder: Path) -> None:
    *sources, target = parts
    into = folder / target.lstrip("/") if target.startswith("/") else place / target
    for source in sources:
        path = ROOT / source
        if path.is_dir():
            shutil.copytree(path, into, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            end = into / path.name if target.endswith("/") or len(sources) > 1 else into
            end.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, end)


if __name__ == "__main__":
    main()
