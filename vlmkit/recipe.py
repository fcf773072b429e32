"""Recipes as files and overrides: defaults, then a YAML recipe, then ``--set a.b=c`` and the named flags.

A recipe is resolved once, written into the run directory and compared on resume. Every key is known: a typo is an
error that names the nearest key.
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

import yaml
from pydantic import ValidationError

from vlmkit import registry
from vlmkit.config import EMBEDDED_VLM, RECIPES, LLMConfig, Section
from vlmkit.errors import UserError

RESUME_MAY_DIFFER = {
    "log",
    "checkpoint",
    "num_workers",
    "micro_batch_size",
    "steps",
    "samples",
    "epochs",
    "eval_every_steps",
}
"""Keys that may change between a run and its resumption: none of them changes what is computed at a step, but for the
rounding of sums that other micro-batches add up in another order."""


def load_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping from ``path``; a UserError says what is wrong with the file."""
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"There is no recipe {path}; `ls recipes` shows those that ship with vlmkit.") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"The recipe {path} cannot be read ({reason}); mend the file.") from error
    if not isinstance(raw, dict):
        raise UserError(f"The recipe {path} is not a mapping of keys to values; see recipes/ for examples.")
    return raw


def load_recipe(command: str, path: Path | None, overrides: Mapping[str, Any]) -> Section:
    """Resolve a recipe: defaults, then the YAML file at ``path``, then ``overrides`` (dotted keys, later ones win)."""
    raw = load_yaml(path) if path else {}
    if raw.get("command", command) != command:
        raise UserError(f"{path} is a recipe for `vlmkit {raw['command']}`, not for `vlmkit {command}`.")
    given: dict[str, Any] = {}
    for key, value in overrides.items():
        _assign(given, key, value)
    raw = _lay_over(raw, given)
    if command == "train-vlm" and path is None and _is_embedded(raw):
        raw = _lay_over(EMBEDDED_VLM, raw)
    return parse_recipe(command, raw, origin=str(path) if path else "the command line")


def parse_override(text: str) -> tuple[str, Any]:
    """``a.b=c`` of ``--set`` as (dotted key, YAML value)."""
    key, separator, value = text.partition("=")
    if not separator or not key.strip():
        raise UserError(f"--set {text} has no `=`; write it as --set train.optim.lr=1e-3.")
    try:
        return key.strip(), _number(yaml.safe_load(value))
    except yaml.YAMLError as error:
        raise UserError(f"--set {text} is not valid YAML after the `=`; quote the value.") from error


def parse_recipe(command: str, raw: Mapping[str, Any], origin: str) -> Section:
    """Validate ``raw`` as the recipe of ``command``; a UserError names each wrong key with its nearest known one."""
    model = RECIPES[command]
    try:
        return model.model_validate(_keep_defaults(model, _numbers(raw)))
    except ValidationError as error:
        # Of a value that may be a text or a mapping, the complaint that a given mapping is no text says nothing.
        found = [e for e in error.errors() if not (e["type"] == "string_type" and isinstance(e["input"], Mapping))]
        reasons = "; ".join(_explain(model, item) for item in found or error.errors())
        raise UserError(f"The recipe ({origin}) is not valid: {reasons}.") from error


def vary(recipe: Section, overrides: Mapping[str, Any]) -> Section:
    """``recipe`` with the given dotted keys replaced; all other keys as they are. Raises UserError for wrong keys."""
    given: dict[str, Any] = {}
    for key, value in overrides.items():
        _assign(given, key, value)
    raw = recipe.model_dump(mode="json", exclude_unset=True)
    command = recipe.model_dump()["command"]
    return parse_recipe(command, _lay_over(raw, given), origin="a variation of it")


def resume_conflicts(before: Section, now: Section) -> list[str]:
    """Keys whose values differ between two recipes and matter to the result, as ``key: before -> now``."""
    old, new = dict(_leaves(before.model_dump(mode="json"))), dict(_leaves(now.model_dump(mode="json")))
    return [
        f"{key}: {old.get(key)} -> {new.get(key)}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and not RESUME_MAY_DIFFER & set(key.split("."))
    ]


def _assign(raw: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    node = raw
    for parent in parents:
        child = node.setdefault(parent, {})
        if not isinstance(child, dict):
            raise UserError(f"{dotted} cannot be set: {parent} is a value, not a section.")
        node = child
    node[last] = copy.deepcopy(value)  # a later key may go into it, and must not reach the caller's


def _number(value: Any) -> Any:
    """YAML 1.1 reads 1e-3 as text; people mean a number."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _numbers(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    return _number(value) if isinstance(value, str) and value[:1] in "+-.0123456789" else value


_LENGTHS = {"steps", "samples", "epochs"}


def _keep_defaults(model: type[Section], raw: Mapping[str, Any]) -> dict[str, Any]:
    """Lay each given section over this model's default for it, key by key; a given length replaces the default one.

    pydantic alone replaces a nested default whole when any of its keys is given: a recipe that sets only the learning
    rate would lose the batch size that this command's default section has.
    """
    merged = dict(raw)
    for name, field in model.model_fields.items():
        default, given = field.default, raw.get(name)
        if isinstance(default, Section) and isinstance(given, Mapping):
            merged[name] = _lay_over(default.model_dump(exclude_unset=True), _keep_defaults(type(default), given))
    return merged


def _is_embedded(raw: Mapping[str, Any]) -> bool:
    """Whether the language model is an embedded one; that of a checkpoint to start from, other than a run, is not."""
    init = raw.get("init")
    if isinstance(init, str) and not (Path(init) / "recipe.yaml").is_file():
        return False
    llm = raw.get("llm", {})
    name = llm.get("name", LLMConfig().name) if isinstance(llm, Mapping) else None
    return isinstance(name, str) and registry.is_llm(name) and registry.llm(name).embedded


def _lay_over(base: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """``given`` over ``base``, key by key at every depth; a given length replaces the one below it."""
    replaced = _LENGTHS if given.keys() & _LENGTHS else set()
    result = {key: value for key, value in base.items() if key not in replaced}
    for key, value in given.items():
        nested = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = _lay_over(result[key], value) if nested else value
    return result


def _leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _leaves(item, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value


def _explain(model: type[Section], error: Any) -> str:
    """One validation error in a few words: the dotted key, what is wrong, the nearest known key."""
    path = [str(part) for part in error["loc"] if not str(part).startswith("dict[")]
    key = ".".join(path)
    if error["type"] == "extra_forbidden":
        known = _known_keys(model, path[:-1])
        near = difflib.get_close_matches(path[-1], known, n=1, cutoff=0.5)
        hint = f"did you mean {'.'.join([*path[:-1], near[0]])}?" if near else f"known keys: {', '.join(known)}"
        return f"there is no key {key} ({hint})"
    message = error["msg"].removeprefix("Value error, ")
    given = error.get("input")
    shown = f" (got {given!r})" if not isinstance(given, Mapping) else ""
    return f"{key + ': ' if key else ''}{message[0].lower()}{message[1:]}{shown}"


def _known_keys(model: type[Section], path: Sequence[str]) -> list[str]:
    current: Any = model
    for part in path:
        annotation = current.model_fields[part].annotation
        options = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
        current = next(option for option in options if isinstance(option, type) and issubclass(option, Section))
    return list(current.model_fields)
