"""Typed, frozen settings read from YAML: every key is known, every error names its place, nothing is evaluated."""

import ast
import difflib
import hashlib
import inspect
import io
import json
import re
import textwrap
import tokenize
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler, ValidationError
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from medmtl.errors import UserError

_FOR_TOOLS = re.compile(r"^# (type|fmt|noqa|pragma): ?\S*")  # comments that say nothing of a key


class Config(BaseModel):
    """A typed, frozen setting; a misspelt key is an error, and so is a number that is not finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    def idle(self) -> Mapping[str, str]:
        """Keys (``a``, ``a.b``) that training does not read as things are set here -> what it does instead.

        It overwrites them, or another key switches off what they would act on. In a bundle they may hold what was
        resolved; a study in which one differs from its default is refused (:func:`refuse_idle`).
        """
        return {}

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """The class's JSON schema; a key is described by the comment behind it in the source."""
        schema = handler(core)
        properties = handler.resolve_ref_schema(schema).get("properties", {})
        for name, text in _comments(cls).items():
            properties[name].setdefault("description", text)
        return schema


def _comments(kind: type[Config]) -> dict[str, str]:
    """Field -> its comment, on its lines or right below them; of what a subclass declares anew, the subclass's.

    Only a schema asks for it: reading the source takes a second for all the settings of a study.
    """
    found: dict[str, str] = {}
    for owner in reversed([base for base in kind.__mro__ if issubclass(base, Config)]):
        try:
            source = textwrap.dedent(inspect.getsource(owner))
        except (OSError, TypeError):  # installed without sources, or defined in none
            continue
        tokens = tokenize.generate_tokens(io.StringIO(source).readline)
        comments = {token.start[0]: token for token in tokens if token.type == tokenize.COMMENT}
        (body,) = [node.body for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]
        for node in body:
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                text = _comment_of(node, comments)
                found.pop(node.target.id, None)
                found |= {node.target.id: text} if text and node.target.id in kind.model_fields else {}
    return found


def _comment_of(node: ast.AnnAssign, comments: Mapping[int, tokenize.TokenInfo]) -> str:
    below = (node.end_lineno or node.lineno) + 1
    lines = [line for line in range(node.lineno, below) if line in comments]
    while lines and below in comments and comments[below].line.lstrip().startswith("#"):  # it goes on below
        lines, below = [*lines, below], below + 1
    texts = [_FOR_TOOLS.sub("", comments[line].string).lstrip("# ") for line in lines]
    return " ".join(text for text in texts if text)


C = TypeVar("C", bound=Config)
Single = Annotated[float, Field(ge=-1e30, le=1e30)]  # a number that single precision holds, and differences of such


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
        lines = [_explain(item, kind, tree) for item in error.errors(include_url=False)]
        raise UserError("E-CFG", "; ".join(lines), "correct the file or the override", where=where) from error


def _explain(item: Any, kind: type[Config], tree: Mapping[str, Any]) -> str:
    path = ".".join(_keys(item["loc"], tree, absent=item["type"] in ("missing", "extra_forbidden")))
    if not path and item["type"] == "value_error":  # of the whole, which need not be printed: it says where itself
        return str(item["ctx"]["error"])
    if item["type"] != "extra_forbidden":
        found = "" if item["type"] == "missing" else f" (found {item['input']!r})"
        return f"{path}: {item['msg']}{found}"
    known = sorted({name for model in _models(kind) for name in model.model_fields})
    close = difflib.get_close_matches(str(item["loc"][-1]), known, n=1)
    return f"{path}: unknown key" + (f", did you mean {close[0]!r}?" if close else "")


def _keys(loc: Sequence[int | str], tree: Any, *, absent: bool) -> Iterator[str]:
    """The parts of an error's place that are keys of ``tree``: not the names of a union's members, which are none.

    ``absent``: the last one is a key, whether or not it is there.
    """
    for i, part in enumerate(loc):
        if isinstance(tree, Mapping) and part in tree:
            tree = tree[part]
        elif isinstance(tree, list | tuple) and isinstance(part, int):
            tree = tree[part] if part < len(tree) else None
        elif not (absent and i == len(loc) - 1):
            continue
        yield str(part)


def _models(kind: type[BaseModel]) -> list[type[BaseModel]]:
    """``kind`` and every subclass of Config that has been imported: the vocabulary for suggestions."""
    found, queue = [kind], [Config]
    while queue:
        for child in queue.pop().__subclasses__():
            found.append(child)
            queue.append(child)
    return found


def refuse_idle(config: Config) -> None:
    """ValueError that lists every key below ``config`` that is set and idle (:meth:`Config.idle`), and what is read."""
    found = [
        f"{path} is {_json(value)}, which nothing reads: {why}; remove it, or write {_json(default)}"
        for path, value, default, why in _idle(config, "")
    ]
    if found:
        raise ValueError("; ".join(found))


def _json(value: Any) -> str:
    """On one line, as YAML reads it too."""
    return json.dumps(value, default=plain)


def _idle(config: Config, prefix: str) -> Iterator[tuple[str, Any, Any, str]]:
    """``(path, value, default, why)`` of what is set and idle in a tree of settings, in mappings and tuples too."""
    for path, why in config.idle().items():
        *parents, key = path.split(".")
        node = reduce(getattr, parents, config)
        value, default = getattr(node, key), type(node).model_fields[key].default
        if value != default:
            yield f"{prefix}{path}", value, default, why
    for name in type(config).model_fields:
        value = getattr(config, name)
        inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, tuple) else ()
        for key, child in ((name, value), *((f"{name}.{key}", child) for key, child in inside)):
            if isinstance(child, Config):
                yield from _idle(child, f"{prefix}{key}.")


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
