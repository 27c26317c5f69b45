"""What the documents say is there: linked files, options of commands, keys of studies; the installed version."""

import re
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import pytest
import typer
import yaml

import medmtl
from medmtl import cli
from medmtl.config import validate
from medmtl.inference.writers import Output
from medmtl.study import Study

PAGES = [Path("README.md"), *sorted(Path("docs").glob("*.md")), *sorted(Path("workflows").glob("*/README.md"))]
BLOCKS = [(page, text) for page in PAGES for text in re.findall(r"```yaml\n(.*?)```", page.read_text("utf-8"), re.S)]
AGREEMENT = {"kind": "regression", "low": 0, "high": 1}
LEAST = {"name": "x", "data": {"manifest": "m.csv"}, "tasks": {"agreement": AGREEMENT}}


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_link_leads_somewhere(page):
    links = re.findall(r"\]\(([^)#\s]+)", page.read_text("utf-8"))
    assert not [link for link in links if not link.startswith("http") and not (page.parent / link).exists()]


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_option_is_one_of_its_command(page):
    commands = typer.main.get_command(import_module(f"{cli.__name__}.app").app).commands
    known = {name: {flag for p in it.params for flag in (*p.opts, *p.secondary_opts)} for name, it in commands.items()}
    for line in page.read_text("utf-8").replace("\\\n", " ").splitlines():
        for name, rest in re.findall(r"(?:^|`)(?:torchrun .*)?medmtl ([a-z-]+)([^`#|]*)", line):
            if name in known:
                assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", rest)) <= known[name], line


@pytest.mark.parametrize(("page", "text"), BLOCKS, ids=lambda value: str(value)[:20])
def test_every_setting_is_known(page, text):
    tree = yaml.safe_load(text)
    if "formats" in tree:
        validate(Output, tree, where=str(page))
    elif "study" not in tree:  # a sweep's file
        data = {**LEAST["data"], **tree.get("data", {})}
        validate(Study, {**LEAST, **tree, "data": data}, where=str(page))


def test_an_update_renews_what_is_installed():
    stamp = next(line for line in Path("Makefile").read_text("utf-8").splitlines() if line.startswith("$(STAMP):"))
    assert "medmtl/__init__.py" in stamp, "the version is there, and MLflow compares it with the installed one"


def test_the_installed_version_is_that_of_the_code():
    assert version("medmtl") == medmtl.__version__, "run make install"
