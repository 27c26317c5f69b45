"""Run the steps of a target of a Dockerfile without a container engine, and try what it promises.

    python docker/outside.py docker/Dockerfile.cpu inference /tmp/image [--arg TORCH_INDEX=] [--only-promises]

The instructions of the target and of the stages that it is made of are carried out one after the other, with the
image's paths below the given folder. What they do not copy into the target is removed. Then docker/promises.py uses the
result as the image's user, and without a network where there is to be none (both as far as this machine lets it). Needs
the package index; users are not created, and the base image is this machine's Python.
"""

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from promises import Image, keep

ROOT = Path(__file__).resolve().parents[1]
INSIDE = ("/opt/medmtl", "/src", "/study", "/output", "/input", "/artifacts", "/tmp")
OWNER = 1000
_OURS = ("PYTHON", "VIRTUAL", "MLFLOW_TRACKING", "RANK", "WORLD_SIZE")  # of this machine, not of an image


@dataclass
class Stage:
    """A stage of a Dockerfile: what it begins with, and its instructions."""

    name: str
    base: str
    steps: list[tuple[str, str]] = field(default_factory=list)  # (instruction, text)


@dataclass(frozen=True)
class State:
    """What a stage hands on to those that begin with it."""

    environment: Mapping[str, str]
    arguments: Mapping[str, str] = field(default_factory=dict)
    place: str = "/"
    user: str = "0:0"
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()


def stages(dockerfile: Path) -> dict[str, Stage]:
    """Every stage by name; continued lines joined, comments dropped."""
    lines = [line for line in dockerfile.read_text(encoding="utf-8").splitlines() if not line.lstrip().startswith("#")]
    found: dict[str, Stage] = {}
    current: Stage | None = None
    for line in re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines():
        word, _, rest = line.strip().partition(" ")
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            current = found[name] = Stage(name, base)
        elif word and current is not None:
            current.steps.append((word, rest.strip()))
    return found


def chain(found: Mapping[str, Stage], name: str) -> list[Stage]:
    """A stage and those that it begins with, the first one first."""
    stage = found[name]
    return [*(chain(found, stage.base) if stage.base in found else []), stage]


def lineage(found: Mapping[str, Stage], name: str) -> Iterator[Stage]:
    """The stages that a target is made of, in the order in which they are built: bases, and what is copied from."""
    stage = found[name]
    if stage.base in found:
        yield from lineage(found, stage.base)
    for word, rest in stage.steps:
        if word == "COPY" and (source := re.match(r"--from=(\S+)", rest)):
            yield from lineage(found, source[1])
    yield stage


def build(dockerfile: Path, target: str, folder: Path, given: Mapping[str, str], *, run: bool = True) -> Image:
    """Carry out a target's instructions below ``folder``; without ``run`` only say what they come to."""
    found = stages(dockerfile)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
    states: dict[str, State] = {}
    for stage in lineage(found, target):
        if stage.name not in states:
            states[stage.name] = _carried_out(stage, states.get(stage.base, State(kept)), folder, given, run=run)
    if run:
        _forget(found, target, folder)
    last = states[target]
    program, *arguments = (_moved(word, folder) for word in last.entrypoint)
    there = shutil.which(program, path=last.environment["PATH"])
    assert not run or (there is not None and Path(there).is_relative_to(folder)), f"{program} is {there}"
    return Image(
        folder,
        {name: value for name, value in last.environment.items() if name not in last.arguments},
        (there or program, *arguments),
        tuple(_moved(word, folder) for word in last.command),
        folder / last.place.lstrip("/"),
        int(last.user.partition(":")[0]),
    )


def _carried_out(stage: Stage, state: State, folder: Path, given: Mapping[str, str], *, run: bool) -> State:
    """The state behind a stage's last instruction. An instruction of another kind is an error: it would be left out."""
    for word, rest in stage.steps:
        match word:
            case "ARG":
                name, _, default = rest.partition("=")
                state = replace(state, arguments={**state.arguments, name: given.get(name, default)})
            case "ENV":
                pairs = dict(pair.split("=", 1) for pair in shlex.split(rest))
                path = state.environment["PATH"]
                new = {name: _moved(value.replace("$PATH", path), folder) for name, value in pairs.items()}
                state = replace(state, environment={**state.environment, **new})
            case "WORKDIR":
                state = replace(state, place=rest)
                (folder / rest.lstrip("/")).mkdir(parents=True, exist_ok=True)
            case "USER":
                state = replace(state, user=rest)
            case "ENTRYPOINT":
                state = replace(state, entrypoint=tuple(json.loads(rest)), command=())
            case "CMD":
                state = replace(state, command=tuple(json.loads(rest)))
            case "COPY" if "--from=" in rest:  # below one folder it is there already
                _, source, end = rest.split()
                assert source == end, f"{rest}: another path cannot be tried here"
            case "COPY":
                if run:
                    _copy(rest.split(), folder / state.place.lstrip("/"), folder)
            case "RUN":
                if run:
                    _run(stage.name, rest, state, folder)
            case _:
                raise ValueError(f"{stage.name}: {word} cannot be carried out here — teach docker/outside.py")
    return state


def _run(name: str, text: str, state: State, folder: Path) -> None:
    command = re.sub(r"useradd [^&]*&& ", "", _moved(text, folder))
    owner = f"-o {OWNER} -g {OWNER} " if os.geteuid() == 0 else ""
    command = command.replace("-o medmtl -g medmtl ", owner)
    print(f"[{name}] {command}", flush=True)
    place = folder / state.place.lstrip("/")
    place.mkdir(parents=True, exist_ok=True)
    (folder / "tmp").mkdir(exist_ok=True)
    environment = {**state.environment, **state.arguments}
    subprocess.run(["/bin/sh", "-ec", command], cwd=place, env=environment, check=True)


def _forget(found: Mapping[str, Stage], target: str, folder: Path) -> None:
    """Remove what only stages have worked in that the target merely copies from: the image does not have it."""
    own = {stage.name for stage in chain(found, target)}
    for stage in lineage(found, target):
        if stage.name not in own:
            for word, rest in stage.steps:
                if word == "WORKDIR":
                    shutil.rmtree(folder / rest.lstrip("/"), ignore_errors=True)


def _moved(text: str, folder: Path) -> str:
    """Absolute paths of the image as paths below ``folder``."""
    return re.sub(rf"(?<![\w./-])({'|'.join(map(re.escape, INSIDE))})(?![\w-])", rf"{folder}\1", text)


def _copy(parts: list[str], place: Path, folder: Path) -> None:
    """COPY from the repository, as ``--chown`` says where this process may."""
    options, (*sources, target) = [p for p in parts if p.startswith("--")], [p for p in parts if not p.startswith("--")]
    into = folder / target.lstrip("/") if target.startswith("/") else place / target
    for source in sources:
        path = ROOT / source
        if path.is_dir():
            end = into
            shutil.copytree(path, end, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            end = into / path.name if target.endswith(("/", ".")) or len(sources) > 1 else into
            end.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, end)
        if os.geteuid() == 0 and any(option.startswith("--chown") for option in options):
            for item in (end, *end.rglob("*")):
                os.chown(item, OWNER, OWNER)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dockerfile", type=Path)
    parser.add_argument("target")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--arg", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--only-promises", action="store_true", help="of a folder that was built before")
    args = parser.parse_args()
    folder = args.folder.resolve()
    if not args.only_promises:
        shutil.rmtree(folder, ignore_errors=True)
    given = dict(item.split("=", 1) for item in args.arg)
    image = build(args.dockerfile, args.target, folder, given, run=not args.only_promises)
    keep(args.target, image)


if __name__ == "__main__":
    main()
