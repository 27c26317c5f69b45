"""A setting is known, typed and read; every mistake is told at once, and no file runs code."""

import ast
import types
import typing
from pathlib import Path

import pytest
import yaml
from laws import refuses
from pydantic import BaseModel

import medmtl
from medmtl.bundle import ModelSpec, example_input
from medmtl.config import Config, digest, flatten, load, override, plain, read_yaml, to_yaml, validate
from medmtl.study import Study
from medmtl.sweep import read_sweep

ROOT = Path(medmtl.__file__).parent
SWEEPS = sorted((ROOT.parent / "configs" / "sweeps").glob("*.yaml"))
CONFIGS = sorted(path for path in (ROOT.parent / "configs").rglob("*.yaml") if path not in SWEEPS)
STUDY = {
    "name": "tiny",
    "data": {"manifest": "manifest.csv"},
    "preprocess": {"window": [32, 32]},
    "encoder": {"name": "test_efficientnet"},
    "tasks": {"grade": {"kind": "classification", "classes": ["a", "b"]}},
}


def _file(tmp_path, text):
    path = tmp_path / "study.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_an_unknown_key_is_refused_with_the_closest_known_one():
    tree = override(STUDY, ["optim.learning_rat=1"])
    refuses("E-CFG", lambda: validate(Study, tree, where="x"), says="did you mean 'learning_rate'")


def test_all_errors_are_told_at_once_with_key_and_value():
    tree = override(STUDY, ["optim.epochs=0", "fit.precision=fp8", "loader.workers=-1", "seeed=1"])
    message = refuses("E-CFG", lambda: validate(Study, tree, where="file.yaml"), says="file.yaml")
    for part in ("optim.epochs", "found 0", "fit.precision", "fp8", "loader.workers", "seeed", "'seed'"):
        assert part in message


def test_overrides_set_values_lists_and_new_groups():
    tree = override(
        {"a": {"b": 1}, "list": [{"x": 1}, 2]},
        ["a.b=2", "new.deep.key=[1, two]", "list.1=3", "list.0.x=null", "text='007'", "a.c=1e-3"],
    )
    assert tree == {
        "a": {"b": 2, "c": "1e-3"},
        "new": {"deep": {"key": [1, "two"]}},
        "list": [{"x": None}, 3],
        "text": "007",
    }
    assert validate(Study, override(STUDY, ["optim.learning_rate=1e-3"]), where="x").optim.learning_rate == 1e-3


def test_an_override_changes_neither_its_source_nor_what_an_alias_shares():
    shared = ["a", "b"]
    tree = {"x": shared, "y": shared}
    assert override(tree, ["x.0=z"]) == {"x": ["z", "b"], "y": ["a", "b"]}
    assert tree == {"x": ["a", "b"], "y": ["a", "b"]}


@pytest.mark.parametrize("text", ["a", "=1", "a.b.c=1", "list.7=1", "list.x=1", "list.0.y=1", "a.b=[1"])
def test_a_bad_override_is_refused(text):
    refuses("E-CFG-SET", lambda: override({"a": {"b": 1}, "list": [1]}, [text]))


@pytest.mark.parametrize(
    ("text", "code", "says"),
    [
        ("a: 1\nb:\n  c: 1\n  c: 2\n", "E-CFG-TWICE", "'c'"),
        ("a: [1", "E-CFG-YAML", "valid YAML"),
        ("- 1\n- 2\n", "E-CFG-YAML", "list"),
        ("", "E-CFG-YAML", "NoneType"),
        ("a: !!python/object/apply:os.system [echo]\n", "E-CFG-YAML", "python/object"),
        ("a: !!python/name:os.system\n", "E-CFG-YAML", "python/name"),
        ("a: !Custom 1\n", "E-CFG-YAML", "Custom"),
        ("a: 2020-99-99\n", "E-CFG-YAML", "quote it"),
    ],
)
def test_a_bad_file_is_refused_and_never_run(tmp_path, text, code, says):
    assert str(tmp_path) in refuses(code, lambda: read_yaml(_file(tmp_path, text)), says=says)


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    refuses("E-CFG-FILE", lambda: read_yaml(tmp_path / "absent.yaml"))
    refuses("E-CFG-FILE", lambda: read_yaml(tmp_path))
    (tmp_path / "latin.yaml").write_bytes("name: café".encode("latin-1"))
    refuses("E-CFG-YAML", lambda: read_yaml(tmp_path / "latin.yaml"), says="UTF-8")


def test_a_merged_mapping_may_give_a_key_again(tmp_path):
    text = "base: &base {x: 1, y: 2}\nmore: &more {<<: *base, y: 3}\nmost: {<<: *more, x: 4}\n"
    tree = read_yaml(_file(tmp_path, text))
    assert tree["most"] == {"x": 4, "y": 3}


def test_a_date_is_told_as_a_wrong_type_not_as_a_crash(tmp_path):
    path = _file(tmp_path, yaml.safe_dump(STUDY) + "views: 2024-01-31\n")
    refuses("E-CFG", lambda: load(Study, path), says="views")


def test_the_digest_follows_values_and_not_the_order_of_keys():
    turned = dict(reversed(list(STUDY.items())))
    first, second = (validate(Study, tree, where="x") for tree in (STUDY, turned))
    assert first.sha256 == second.sha256
    assert digest({"a": 1, "b": {"c": 2, "d": 3}}) == digest({"b": {"d": 3, "c": 2}, "a": 1})
    assert validate(Study, {**STUDY, "seed": 1}, where="x").sha256 != first.sha256


def test_the_resolved_tree_reads_back_as_itself(tmp_path):
    study = validate(Study, STUDY, where="x")
    assert load(Study, _file(tmp_path, to_yaml(study))) == study
    assert flatten({"a": {"b": 1, "c": []}, "d": {}}) == {"a.b": 1, "a.c": [], "d": {}}


# an option that nothing reads is a lie


def _models(kind, found):
    """Every Config class that the fields of ``kind`` can hold, whatever unions and containers lie between."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        if kind not in found:
            found.add(kind)
            for field in kind.model_fields.values():
                _models(field.annotation, found)
    elif isinstance(kind, types.UnionType) or typing.get_origin(kind) is not None:
        for part in typing.get_args(kind):
            _models(part, found)
    return found


def _read_names(sources):
    """Names that code reads as attributes, of the form ``x.name`` or ``getattr(x, "name")``, or lists as strengths."""
    names = set()
    for source in sources:
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                names.add(node.attr)
            elif isinstance(node, ast.MatchClass):
                names.update(node.kwd_attrs)
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "getattr":
                names.update(a.value for a in node.args[1:2] if isinstance(a, ast.Constant))
    return names


def test_every_key_of_a_study_is_read_by_some_code():
    read = _read_names(path.read_text(encoding="utf-8") for path in ROOT.rglob("*.py"))
    models = _models(Study, set())
    assert len(models) > 15 and all(issubclass(model, Config) for model in models)
    unread = sorted(f"{m.__name__}.{name}" for m in models for name in m.model_fields if name not in read)
    assert [key for key in unread if not key.endswith(".kind")] == []


def test_the_check_for_unread_keys_can_fail():
    assert "never" not in _read_names(["class A:\n    never: int = 0\n\na.other\n"])
    assert {"other", "third"} <= _read_names(["a.other; getattr(a, 'third', 0)"])


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_shipped_configuration_is_valid_and_builds_its_model(path):
    study = load(Study, path)
    data = {"domain": {"classes": ("x", "y")}, "domain_adversary": {"classes": ("x", "y")},
            "annotators": {"annotators": ("x", "y")}}  # what a manifest says  # fmt: skip
    tasks = {name: task.model_copy(update=data.get(task.kind, {})) for name, task in study.tasks.items()}
    spec = ModelSpec(preprocess=study.preprocess, encoder=study.encoder, tasks=tasks, views=study.views)
    outputs = spec.build(load_weights=False).eval()(example_input(spec))
    assert set(outputs) == set(study.tasks)
    assert validate(Study, plain(study), where="x") == study


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_a_shipped_sweep_makes_studies_that_differ(path, monkeypatch):
    monkeypatch.chdir(ROOT.parent)
    _, base, entries = read_sweep(path)
    assert len({base.sha256, *(entry.study.sha256 for entry in entries)}) >= len(entries)
    assert len({entry.name for entry in entries}) == len(entries)


def test_there_are_configurations_to_check():
    assert CONFIGS and SWEEPS
