"""Typed, frozen settings read from YAML: every key is known, every error names its place, nothing is evaluated."""

import difflib
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from medmtl.errors import UserError


class Config(BaseModel):
    """A typed, frozen setting; a misspelt key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


C = TypeVar("C", bound=Config)


class _UniqueKeys(yaml.SafeLoader):
    """PyYAML's safe loader, but a key that is given twice is an error instead of the last one winning."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        keys = [(key.tag, key.value) for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = sorted(value for (tag, value), count in Counter(keys).items() if count > 1)
        if twice:  # seen before `<<: *base` is merged, whose keys may be given again
            raise UserError(
                "E-CFG-TWICE",
                f"key {twice[0]!r} is given twice",
                "keep one of them",
                where=f"line {node.start_mark.line + 1}",
            )
        return node


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; only plain data is constructed."""
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeys)
    except FileNotFoundError as error:
        raise UserError("E-CFG-FILE", "no such file", "check the path", where=str(path)) from error
    except OSError as error:
        raise UserError("E-CFG-FILE", f"cannot be read: {error.strerror}", "check the path", where=str(path)) from error
    except UnicodeDecodeError as error:
        raise UserError("E-CFG-YAML", "not UTF-8 text", "save the file as UTF-8", where=str(path)) from error
    except yaml.YAMLError as error:
        raise UserError("E-CFG-YAML", f"not valid YAML: {error}", "correct the syntax", where=str(path)) from error
    except UserError as error:
        raise UserError(error.code, error.what, error.remedy, where=f"{path} {error.where}") from error
    except ValueError as error:  # a date that there is not
        raise UserError("E-CFG-YAML", f"a value cannot be read: {error}", "quote it", where=str(path)) from error
    if not isinstance(tree, dict):
        raise UserError(
            "E-CFG-YAML",
            f"a mapping was expected, found {type(tree).__name__}",
            "write key: value lines",
            where=str(path),
        )
    return tree


def override(tree: Mapping[str, Any], assignments: Iterable[str]) -> dict[str, Any]:
    """A copy of ``tree`` with every ``a.b=value`` set; the value is read as YAML, ``a.b=null`` removes nothing."""
    result: dict[str, Any] = _copied(tree)
    for assignment in assignments:
        path, equals, value = assignment.partition("=")
        if not equals or not path:
            raise UserError(
                "E-CFG-SET",
                f"{assignment!r} is not of the form a.b=value",
                "write for example optim.epochs=30",
                where="override",
            )
        *parents, leaf = path.strip().split(".")
        node: Any = result
        for key in parents:
            node = _child(node, key, path)
        try:
            parsed = yaml.safe_load(value)
        except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that there is not
            raise UserError("E-CFG-SET", f"{value!r} is not valid YAML", "quote the value", where=path) from error
        if isinstance(node, list):
            node[_index(node, leaf, path)] = parsed
        else:
            node[leaf] = parsed
    return result


def _copied(tree: Any) -> Any:
    """Mappings and lists of their own, also where YAML aliases share one; a date, say, stays what it is."""
    if isinstance(tree, Mapping):
        return {key: _copied(value) for key, value in tree.items()}
    return [_copied(value) for value in tree] if isinstance(tree, list) else tree


def _child(node: Any, key: str, path: str) -> Any:
    child = node[_index(node, key, path)] if isinstance(node, list) else node.setdefault(key, {})
    if not isinstance(child, dict | list):
        raise UserError("E-CFG-SET", f"{key!r} holds a value, not a group of keys", "shorten the path", where=path)
    return child


def _index(node: list[Any], key: str, path: str) -> int:
    if not key.isdigit() or int(key) >= len(node):
        raise UserError("E-CFG-SET", f"{key!r} is not an index of a list of {len(node)}", "count from 0", where=path)
    return int(key)


def validate(kind: type[C], tree: Mapping[str, Any], *, where: str) -> C:
    """Build ``kind`` from plain data; every error at once, each with its key, its value and the closest known key."""
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        lines = [_explain(item, kind) for item in error.errors(include_url=False)]
        raise UserError("E-CFG", "; ".join(lines), "correct the file or the override", where=where) from error


def _explain(item: Any, kind: type[Config]) -> str:
    path = ".".join(str(part) for part in item["loc"])
    if item["type"] != "extra_forbidden":
        found = "" if item["type"] == "missing" else f" (found {item['input']!r})"
        return f"{path}: {item['msg']}{found}"
    known = sorted({name for model in _models(kind) for name in model.model_fields})
    close = difflib.get_close_matches(str(item["loc"][-1]), known, n=1)
    return f"{path}: unknown key" + (f", did you mean {close[0]!r}?" if close else "")


def _models(kind: type[BaseModel]) -> list[type[BaseModel]]:
    """``kind`` and every subclass of Config that has been imported: the vocabulary for suggestions."""
    found, queue = [kind], [Config]
    while queue:
        for child in queue.pop().__subclasses__():
            found.append(child)
            queue.append(child)
    return found


def load(kind: type[C], path: Path, assignments: Iterable[str] = ()) -> C:
    """Read ``path``, apply ``a.b=c`` overrides, validate."""
    return validate(kind, override(read_yaml(path), assignments), where=str(path))


def plain(config: Config) -> dict[str, Any]:
    """The whole resolved tree as JSON-able data."""
    return config.model_dump(mode="json")


def to_yaml(config: Config) -> str:
    """The resolved tree as YAML, in the order the keys are declared."""
    return yaml.safe_dump(plain(config), sort_keys=False, allow_unicode=True, width=120)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"a": {"b": 1}}`` as ``{"a.b": 1}``; lists stay values."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def digest(tree: Any) -> str:
    """SHA-256 of plain data in canonical JSON: equal settings, equal digest, whatever the order of the keys."""
    return hashlib.sha256(json.dumps(tree, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
