"""The JSON schema of a study, for editors: what a comment in the source says of a key, and what a study may hold."""

import inspect
import re
from pathlib import Path

import jsonschema
import pydantic
import pytest

import medmtl
from medmtl.config import Config, load, plain
from medmtl.study import Study

FOLDER = Path(medmtl.__file__).parent.parent / "configs"
CONFIGS = sorted(path for path in FOLDER.rglob("*.yaml") if path.parent.name != "sweeps")


@pytest.fixture(scope="module")
def schema():
    return Study.model_json_schema()


def _classes(kind=Config):
    for child in kind.__subclasses__():
        yield child
        yield from _classes(child)


def _described(schema, owner):
    properties = (schema if owner == "Study" else schema["$defs"][owner])["properties"]
    return {name: tree["description"] for name, tree in properties.items() if "description" in tree}


def test_every_comment_behind_a_key_describes_it(schema):
    """By a regular expression over the lines instead of the tokens."""
    seen = 0
    for kind in _classes():
        if kind.__name__ not in (*schema["$defs"], "Study"):
            continue
        described = _described(schema, kind.__name__)
        for line in inspect.getsource(kind).splitlines():
            found = re.match(r"    (\w+): .*?  # (?!type:)(.+)$", line)
            if found:
                assert described[found[1]].startswith(found[2]), (kind, line)
                seen += 1
    assert seen > 50


@pytest.mark.parametrize(
    ("owner", "key", "text"),
    [
        ("Study", "views", "what validation thresholds, evaluation and inference average over"),
        ("FitConfig", "device", "auto, cpu, cuda"),
        (  # it goes on below
            "FitConfig",
            "precision",
            "of training and of validation within it. What is kept is measured, frozen and evaluated in fp32, "
            "as it predicts",
        ),
        (  # behind the last of several lines
            "FitConfig",
            "threads",
            "of torch, per process; None: torch's choice. Exact resume needs the same number",
        ),
        (  # behind a line in between
            "Classification",
            "threshold",
            "binary: probability of ``positive`` from which it is predicted; chosen on validation",
        ),
        ("Classification", "target", "column target.<this>; None: the task's own name"),  # of a base class
        ("Domain", "target", None),  # declared anew, so what the base says of it does not hold
        ("DomainAdversary", "auxiliary", None),
        ("DomainAdversary", "kind", None),  # a comment for a tool
        ("FitConfig", "channels_last", None),  # none at all
    ],
)
def test_a_key_is_described_as_its_source_comments_it(schema, owner, key, text):
    assert _described(schema, owner).get(key) == text


@pytest.mark.parametrize("module", [__name__, "nowhere"])
def test_a_class_without_sources_has_a_schema_all_the_same(module):
    odd = pydantic.create_model("Odd", __base__=Config, __module__=module, a=(int, 1))
    assert odd.model_json_schema()["properties"] == {"a": {"default": 1, "title": "A", "type": "integer"}}


def test_the_schema_is_one_and_shipped_studies_fit_it(schema):
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    for path in CONFIGS:
        tree = plain(load(Study, path))
        assert not list(validator.iter_errors(tree)), path
    assert list(validator.iter_errors({**tree, "seed": -1}))
