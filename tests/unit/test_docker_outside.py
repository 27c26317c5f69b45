"""A Dockerfile's steps without an engine: what a target comes to, which mistakes are seen, and promises that can break.

The lint sees the form of a Dockerfile alone. That a path, a user or a pin is wrong must be seen from what it comes to.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
FILES = ("Dockerfile", "Dockerfile.cpu")
TARGETS = ("inference", "training", "mlflow")


@pytest.fixture(scope="module", autouse=True)
def _importable() -> Iterator[None]:
    sys.path.insert(0, str(DOCKER))
    yield
    sys.path.remove(str(DOCKER))


def _complaints(dockerfile: Path, folder: Path) -> list[str]:
    """What is wrong with the targets of a Dockerfile, as far as it can be seen without running a step."""
    import outside

    found = outside.stages(dockerfile)
    text = dockerfile.read_text(encoding="utf-8")
    said = [] if re.search(r"^ARG PYTHON=\d+\.\d+\.\d+-", text, flags=re.M) else ["the base has no patch release"]
    for target in TARGETS:
        try:
            image = outside.build(dockerfile, target, folder, {}, run=False)
        except (ValueError, KeyError, AssertionError) as error:
            said.append(f"{target}: {error!r}")
            continue
        made = [rest for stage in outside.chain(found, target) for word, rest in stage.steps if word == "RUN"]
        if image.user == 0 or not any(f"useradd --uid {image.user} " in step for step in made):
            said.append(f"{target}: runs as {image.user}")
        must = {
            "HF_HUB_OFFLINE": "1",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        }
        said += [f"{target}: {name}" for name, value in must.items() if image.environment.get(name) != value]
        if not image.environment["PATH"].startswith(f"{folder}/opt/medmtl/bin:"):
            said.append(f"{target}: PATH")
        said += [f"{target}: {problem}" for problem in _steps(outside, found, target)]
    return said


def _steps(outside: object, found: dict, target: str) -> Iterator[str]:  # type: ignore[type-arg]
    """Packages that nothing pins, and copies of what is not there."""
    for stage in outside.lineage(found, target):  # type: ignore[attr-defined]
        for word, rest in stage.steps:
            if word == "RUN":
                for part in re.split(r"&&|;|\|", rest):
                    installs = re.search(r"\binstall\b(?! -d)", part) and "pip" in part
                    if installs and not re.search(
                        r"-c \S*constraints\.txt .*(-r \S+\.txt|\.)$|--no-deps \.$", part.strip()
                    ):
                        yield f"installs what is not pinned: {part.strip()}"
            elif word == "COPY" and (source := re.fullmatch(r"--from=(\S+) (\S+) (\S+)", rest)):
                steps = [text for each in outside.chain(found, source[1]) for _, text in each.steps]  # type: ignore[attr-defined]
                if not any(f"venv {source[2]} " in f"{text} " for text in steps):
                    yield f"{source[1]} does not make {source[2]}"
            elif word == "COPY":
                sources = [part for part in rest.split() if not part.startswith("--")][:-1]
                yield from (f"{name} is not here" for name in sources if not (ROOT / name).exists())


@pytest.mark.parametrize("name", FILES)
def test_every_target_is_pinned_offline_whole_and_nobody_is_root(name: str, tmp_path: Path) -> None:
    assert _complaints(DOCKER / name, tmp_path) == []


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("USER 1000:1000\n\nFROM base AS mlflow", "\nFROM base AS mlflow"),
        ("/artifacts\nUSER 1000:1000", "/artifacts"),
        ("useradd --uid 1000 ", "useradd --uid 1001 "),
        ("3.11.14-slim", "3.11-slim"),
        ("--from=build-inference /opt/medmtl /opt/medmtl", "--from=build-inference /opt/medmlt /opt/medmlt"),
        ("--from=build-inference", "--from=build-inferenc"),
        ("--from=build-inference /opt/medmtl /opt/medmtl", "--from=build-inference /opt/medmtl /opt/other"),
        ("HF_HUB_OFFLINE=1", "HF_HUB_OFFLINE=0"),
        ("DESERIALIZATION=false", "DESERIALIZATION=true"),
        ("-c constraints.txt -r inference.txt", "-r inference.txt"),
        ("-c constraints.txt -r torch.txt\n", "-r torch.txt\n"),
        ("install --no-deps .", "install medmtl"),
        ("-c constraints.txt .", "-c constraints.txt medmtl"),
        ("COPY medmtl medmtl", "COPY medmlt medmtl"),
        ('ENTRYPOINT ["medmtl"]', "ENTRYPOINT medmtl"),
        ("PATH=/opt/medmtl/bin:$PATH", "PATH=$PATH:/opt/medmtl/bin"),
        ("WORKDIR /output", "ADD https://example.org/x /x\nWORKDIR /output"),
    ],
)
def test_a_mistake_is_seen(right: str, wrong: str, tmp_path: Path) -> None:
    text = (DOCKER / "Dockerfile.cpu").read_text(encoding="utf-8")
    assert right in text
    (tmp_path / "Dockerfile").write_text(text.replace(right, wrong), encoding="utf-8")
    assert _complaints(tmp_path / "Dockerfile", tmp_path / "image")


MINI = """
FROM python AS build
ARG WORD=default
ENV BUILDING=1
WORKDIR /src
COPY docker/torch.txt README.md ./
RUN install -d /opt/medmtl/bin \\
 # a comment in between
 && printf '#!/bin/sh\\necho "$GREETING,$BUILDING,$WORD,%s"' "$WORD" > /opt/medmtl/bin/tool \\
 && chmod 755 /opt/medmtl/bin/tool && test -f torch.txt

FROM python AS base
RUN useradd --uid 1000 medmtl \\
 && install -d -o medmtl -g medmtl /study
ENV PATH=/opt/medmtl/bin:$PATH GREETING="hello there"
USER 1000:1000

FROM base AS training
COPY --from=build /opt/medmtl /opt/medmtl
COPY --chown=1000:1000 configs /study/configs
WORKDIR /study
ENTRYPOINT ["tool"]
CMD ["--data", "/artifacts"]
"""


def test_the_steps_are_carried_out_below_a_folder(tmp_path: Path) -> None:
    import outside

    (tmp_path / "Dockerfile").write_text(MINI)
    folder = tmp_path / "image"
    image = outside.build(tmp_path / "Dockerfile", "training", folder, {"WORD": "given"})
    assert image.entrypoint == (f"{folder}/opt/medmtl/bin/tool",) and image.command == ("--data", f"{folder}/artifacts")
    assert (image.place, image.user) == (folder / "study", 1000)
    assert (image.place / "configs" / "smoke" / "atypical_mitosis.yaml").is_file()
    assert not (folder / "src").exists(), "a target has what it copies, not where it was built"
    said = subprocess.run(image.entrypoint, env=dict(image.environment), capture_output=True, text=True).stdout
    assert said == "hello there,,,given\n", "neither ARG nor the ENV of another stage is the target's"
    if os.geteuid() == 0:
        assert (image.place / "configs").stat().st_uid == image.place.stat().st_uid == 1000
    (tmp_path / "Dockerfile").write_text(MINI.replace("test -f torch.txt", "test -f absent"))
    with pytest.raises(subprocess.CalledProcessError):
        outside.build(tmp_path / "Dockerfile", "training", folder, {})


def _checkout(tmp_path: Path):  # type: ignore[no-untyped-def]
    """This checkout's environment as if it were an image."""
    from promises import Image

    tools = tmp_path / "opt/medmtl/bin"
    tools.mkdir(parents=True)
    for name, words in {"python": "", "medmtl": "-m medmtl"}.items():
        (tools / name).write_text(f'#!/bin/sh\nexec {sys.executable} {words} "$@"\n')
        (tools / name).chmod(0o755)
    return Image(tmp_path, dict(os.environ), (str(tools / "medmtl"),), (), tmp_path, os.geteuid())


def test_every_target_has_promises() -> None:
    import outside
    from promises import PROMISES

    named = {name for name in outside.stages(DOCKER / "Dockerfile.cpu") if name not in ("base", "build")}
    assert set(PROMISES) == set(TARGETS) == {name for name in named if not name.startswith("build-")}


def test_what_must_not_be_there_is_found(tmp_path: Path) -> None:
    from promises import what_predicting_does_not_need_is_not_there

    with pytest.raises(AssertionError, match="mlflow"):
        what_predicting_does_not_need_is_not_there(_checkout(tmp_path), tmp_path)


def test_who_outlives_the_first_process_is_named(tmp_path: Path) -> None:
    from promises import _ended, _until, group, stopped

    child = "import signal; print('', flush=True); signal.pause()"
    code = f"import subprocess, sys, signal; subprocess.Popen([sys.executable, '-c', {child!r}]); signal.pause()"
    process = _checkout(tmp_path).start([sys.executable, "-c", code], home=tmp_path)
    with _ended(process):
        _until(lambda: len(group(process.pid)) == 2, process)
        (other,) = set(group(process.pid)) - {process.pid}
        seconds, left = stopped(process)
        assert seconds < 10 and left == [other]
    ended = _checkout(tmp_path / "again").start([sys.executable, "-c", "print('why')"], home=tmp_path)
    with _ended(ended), pytest.raises(AssertionError, match="not ready: why"):
        _until(lambda: False, ended)


@pytest.mark.slow
def test_a_watcher_is_healthy_while_it_is_at_work_and_not_when_it_was_stopped(tmp_path: Path) -> None:
    """The promise of the image for inference, kept by this checkout: real processes, real time."""
    from promises import it_predicts_and_watches_with_a_check_that_tells

    (tmp_path / "home").mkdir()
    said = it_predicts_and_watches_with_a_check_that_tells(_checkout(tmp_path), tmp_path / "home")
    assert "12 of 12, twice; healthy: " in said and "12 inputs with a result, 0 without" in said
