"""Options that several commands share, and how their help looks."""

import ast
import dataclasses
import inspect
import itertools
import textwrap
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import docstring_parser
import tyro
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructFieldSpec, StructTypeInfo

from gleansr.inference.precision import Precision

_METAVARS = {
    "box": "X,Y,W,H",
    "device": "DEVICE",
    "methods": "NAMES",
    "metrics": "NAMES",
    "model": "MODEL",
    "option": "KEY=VALUE",
    "ray": "[ADDRESS]",
}
_TYPES = {int: "N", float: "X", str: "TEXT", Path: "PATH"}


def registry() -> ConstructorRegistry:
    """How tyro reads commands and their dataclasses, which stay as they are.

    In help, values have names, defaults that say nothing, such as None, are left out, and texts are whole paragraphs, whose indented lines
    tyro would keep apart.
    """
    rules = ConstructorRegistry()
    rules.struct_rule(_options)
    return rules


def _options(info: StructTypeInfo) -> StructConstructorSpec | None:
    """The options of a command's function, or of a dataclass among its parameters."""
    command: Callable[..., Any] = info.type
    if not (inspect.isfunction(command) or dataclasses.is_dataclass(command)):
        return None
    annotations, helps = typing.get_type_hints(command, include_extras=True), _helps(command)
    fields = []
    for name, parameter in inspect.signature(command).parameters.items():
        default = tyro.MISSING if parameter.default is parameter.empty else parameter.default
        if dataclasses.is_dataclass(command) and isinstance(info.default, info.type):
            default = getattr(info.default, name)
        fields.append(StructFieldSpec(name, _option(name, annotations[name], helps.get(name)), default, helps.get(name)))
    return StructConstructorSpec(command, tuple(fields))


def _option(name: str, annotation: Any, text: str | None) -> Any:
    """The annotation of an option, with its looks."""
    if dataclasses.is_dataclass(_plain(annotation)):
        return annotation
    metadata: tuple[Any, ...] = getattr(annotation, "__metadata__", ())
    given: Any = next((one for one in metadata if hasattr(one, "metavar")), tyro.conf.arg())
    metavar = given.metavar or _metavar(name, annotation)
    return Annotated[annotation, dataclasses.replace(given, metavar=metavar, help=given.help or text, help_behavior_hint=_default)]


def _helps(command: Callable[..., Any]) -> dict[str, str]:
    """The text of each option: from "Args:" of a function, from the strings below the fields of a dataclass and of its bases."""
    if isinstance(command, type):
        bases = [base for base in reversed(command.__mro__) if dataclasses.is_dataclass(base)]
        texts = {name: text for base in bases for name, text in _field_texts(base).items()}
    else:
        texts = {one.arg_name: one.description or "" for one in docstring_parser.parse(command.__doc__ or "").params}
    return {name: " ".join(text.split()) for name, text in texts.items()}


def _field_texts(kind: type) -> dict[str, str]:
    try:
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    except OSError:  # no source, as in a frozen program
        return {}
    assert isinstance(tree, ast.ClassDef)  # noqa: S101, it is the source of a class
    return {
        field.target.id: text.value.value
        for field, text in itertools.pairwise(tree.body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant) and isinstance(text.value.value, str)
    }


def _plain(annotation: Any) -> Any:
    return typing.get_args(annotation)[0] if hasattr(annotation, "__metadata__") else annotation


def _metavar(name: str, annotation: Any) -> str | None:
    """Of an option's value; its choices where there are some, None of a flag."""
    plain = _plain(annotation)
    if tyro.conf.Positional in getattr(annotation, "__metadata__", ()) and typing.get_origin(plain) is not Literal:
        return name.upper()
    if typing.get_origin(plain) in (typing.Union, types.UnionType):
        plain = next(one for one in typing.get_args(plain) if one is not types.NoneType)
    several = typing.get_origin(plain) is tuple
    plain = typing.get_args(plain)[0] if several else plain
    if typing.get_origin(plain) is Literal:
        return f"{{{','.join(map(str, typing.get_args(plain)))}}}"
    if plain is bool:
        return None
    value = _METAVARS.get(name) or _TYPES.get(plain)
    return f"{value} ..." if several and value and name in ("option", "data", "validation", "models") else value


def _default(default: str) -> str:
    return "" if default.strip() in ("", "None", "False", "True", "()") else f"(default: {default})"


@dataclass(frozen=True)
class DeviceOptions:
    """Where and how fast it is computed."""

    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda, cuda:1, mps."""
    precision: Precision = "auto"
    """Arithmetic. auto is fp32 on a CPU and bf16 on a GPU that supports it."""
    offline: bool = False
    """Never download a model."""


@dataclass(frozen=True)
class BatchOptions(DeviceOptions):
    """Where and how fast it is computed."""

    batch_size: int | None = None
    """Images per forward pass; by default what suits the device."""
