# SPDX-License-Identifier: BSD-3-Clause
"""What the program can complain of, read from its source.

A complaint is the text of an error that ends a command or a client's time, of a line in the log
from warning on, or of another of `SINKS`. There it is a literal, an f-string or a sum of these.
Where it is a name or a call, it is what the same module assigns to that name, hands in for that
parameter, or returns from that function; so are the parts of a text that has no word of its own.
What varies is a `VARYING` in it.
"""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

#: what takes a complaint, and as which argument; subclasses of the errors too
SINKS = {
    "BridgeError": 0,
    "UsageError": 0,
    "DeviceError": 0,
    "ArgumentTypeError": 0,
    "ProtocolError": 0,
    "PeerGoneError": 0,
    "Obstacle": 1,
    "complain": 0,
}
#: a logger's methods, likewise
LOUD = {"warning": 0, "error": 0, "exception": 0, "critical": 0, "log": 1}
VARYING = "\0"
_CONVERSION = re.compile(r"%[-\d.]*[a-z]")


@dataclass(frozen=True, slots=True)
class Complaint:
    text: str
    where: str  # file:line


def complaints(
    package: Path, sinks: Mapping[str, int] = SINKS, methods: Mapping[str, int] = LOUD
) -> list[Complaint]:
    """All of them, in the order of files and lines.

    :param methods: a logger's
    """
    modules = {path: ast.parse(path.read_text()) for path in sorted(package.rglob("*.py"))}
    every = {**sinks, **dict.fromkeys(_subclasses(modules.values(), sinks), 0)}
    return [
        Complaint(text, f"{path.relative_to(package.parent)}:{line}")
        for path, tree in modules.items()
        for line, text in sorted(_Module(tree, every, methods).complaints())
    ]


def texts(package: Path) -> set[str]:
    """Every text in the source, complaint or not."""
    nodes = (
        node for path in package.rglob("*.py") for node in ast.walk(ast.parse(path.read_text()))
    )
    return {text for node in nodes for text in _literal(node)}


def _subclasses(modules: Iterable[ast.Module], classes: Container[str]) -> Iterator[str]:
    for tree in modules:
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and any(
                _name(base) in classes for base in node.bases
            ):
                yield node.name


class _Module:
    """One file: its functions and calls, and which function each expression is in."""

    def __init__(
        self, tree: ast.Module, sinks: Mapping[str, int], methods: Mapping[str, int]
    ) -> None:
        self._sinks = sinks
        self._methods = methods
        self._functions: dict[str, ast.FunctionDef] = {}
        self._homes: dict[ast.AST, ast.FunctionDef | None] = {}
        self._enter(tree, None)
        self._calls = [node for node in self._homes if isinstance(node, ast.Call)]

    def _enter(self, node: ast.AST, home: ast.FunctionDef | None) -> None:
        self._homes[node] = home
        if isinstance(node, ast.FunctionDef):
            self._functions[node.name] = home = node
        for child in ast.iter_child_nodes(node):
            self._enter(child, home)

    def complaints(self) -> set[tuple[int, str]]:
        found = {(call.lineno, text) for call in self._calls for text in self._complaints(call)}
        return {(line, text) for line, text in found if _says_something(text)}

    def _complaints(self, call: ast.Call) -> Iterable[str]:
        match call.func:
            case ast.Attribute(value=ast.Name(id="log" | "logging"), attr=name) if (
                name in self._methods
            ):
                form, *values = call.args[self._methods[name] :]
                return self._formatted(form, values)
        name = _name(call.func)
        return self._said(_argument(call, self._sinks[name])) if name in self._sinks else ()

    def _formatted(self, form: ast.expr, values: Iterable[ast.expr]) -> Iterator[str]:
        """A logger's format, its values put in."""
        for text, *said in itertools.product(self._said(form), *map(self._said, values)):
            yield "".join(
                map("".join, itertools.zip_longest(_CONVERSION.split(text), said, fillvalue=""))
            )

    def _said(self, expression: ast.expr | None) -> set[str]:
        """All that *expression* can say; `VARYING` alone if that can be anything."""
        match expression:
            case ast.Constant(value=str(text)):
                return {text}
            case ast.BinOp(op=ast.Add(), left=left, right=right):
                return self._joined((left, right))
            case ast.JoinedStr(values=parts) if not any(map(_says_something, _literal(expression))):
                return self._joined(parts)
            case ast.FormattedValue(value=value):
                return self._said(value)
            case ast.IfExp(body=one, orelse=other):
                found = self._all((one, other))
            case ast.BoolOp(values=values):
                found = self._all(values)
            case ast.Call(func=function) if _name(function) in self._functions:
                found = self._all(self._results(self._functions[_name(function)]))
            case ast.Name(id=name):
                found = self._all(self._values(name, self._homes[expression]))
            case _:
                found = set(_literal(expression))
        return found if all(map(_says_something, found)) and found else {VARYING}

    def _all(self, expressions: Iterable[ast.expr | None]) -> set[str]:
        return set().union(*map(self._said, expressions))

    def _joined(self, parts: Iterable[ast.expr]) -> set[str]:
        """All that *parts* can say, one after the other."""
        return set(map("".join, itertools.product(*map(self._said, parts))))

    def _results(self, function: ast.FunctionDef) -> Iterator[ast.expr | None]:
        """What *function* returns."""
        for node in ast.walk(function):
            if isinstance(node, ast.Return) and self._homes[node] is function:
                yield node.value

    def _values(self, name: str, home: ast.FunctionDef | None) -> Iterator[ast.expr | None]:
        """What is handed in as *name* to the function *home*, or assigned to it there."""
        if home is None:
            return
        parameters = [parameter.arg for parameter in home.args.args]
        if name in parameters:
            place = parameters.index(name) - (parameters[0] == "self")
            for call in self._calls:
                if _name(call.func) == home.name:
                    yield _argument(call, place, name)
        for node in ast.walk(home):
            match node:
                case ast.Assign(targets=[ast.Name(id=target)], value=value) if target == name:
                    if not (isinstance(value, ast.Constant) and value.value is None):
                        yield value


def _literal(node: ast.AST | None) -> Iterator[str]:
    match node:
        case ast.Constant(value=str(text)):
            yield text
        case ast.JoinedStr(values=parts):
            yield "".join(text for part in parts for text in _literal(part))
        case ast.FormattedValue():
            yield VARYING


def _argument(call: ast.Call, place: int, name: str = "") -> ast.expr | None:
    named = [keyword.value for keyword in call.keywords if keyword.arg == name]
    return [*named, *call.args[place : place + 1], None][0]


def _name(expression: ast.expr) -> str:
    match expression:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
    return ""


def _says_something(text: str) -> bool:
    return bool(re.search("[a-z]", text))
