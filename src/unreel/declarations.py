"""What the class or function of a `_target_` takes, read from its source: nothing is imported, which takes seconds.

PyTorch and diffusers are wanted by nearly every class that a YAML builds, and none of them is needed to see that
`data.batch=0` will not do. What cannot be read (a class made by a call, say) is left to Hydra and to the class itself.
"""

import ast
import builtins
import importlib
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from importlib.machinery import ModuleSpec, PathFinder
from typing import Any

_IMPORTED = ("typing", "collections.abc", "pathlib", "pydantic", "unreel.validation")  # light, and full of types
_SELF = ("self", "cls")
_DATACLASSES = {"dataclass", "checked"}  # decorators that make an `__init__` of a class's annotations


@dataclass(frozen=True)
class Arguments:
    """What may be given.

    Attributes:
        called: name of the class or function.
        types: argument -> its declared type; Any where that cannot be told.
        more: whether it takes others too.
    """

    called: str
    types: dict[str, Any]
    more: bool


@dataclass(frozen=True)
class _Module:
    """A module's top level: what it defines, what it assigns, and name -> (module, name there) of what it imports."""

    name: str
    defined: dict[str, ast.ClassDef | ast.FunctionDef]
    assigned: dict[str, ast.expr]
    imported: dict[str, tuple[str, str]]


def arguments_of(target: str) -> Arguments | None:
    """The arguments of "package.module.Class", "package.module.function" or "package.module.Class.method".

    Returns:
        None where its source cannot be read or understood.

    Raises:
        ValueError: when a module that can be read has no such name.
    """
    found = _located(target)
    if found is None:
        return None
    module, path = found
    node: ast.AST | None = module.defined.get(path[0])
    if node is None:
        if path[0] in module.imported:
            where, name = module.imported[path[0]]
            return arguments_of(".".join([where, name, *path[1:]]))
        if path[0] in module.assigned:
            return None
        raise ValueError(f"{module.name} has no {path[0]}")
    for name in path[1:]:
        inside = node.body if isinstance(node, ast.ClassDef) else []
        node = next((n for n in inside if getattr(n, "name", None) == name), None)
    if isinstance(node, ast.FunctionDef):
        return _of_function(module, node, bound=len(path) > 1)
    return _of_class(module, node) if isinstance(node, ast.ClassDef) else None


def _located(target: str) -> tuple[_Module, list[str]] | None:
    """The longest part of a dotted name that is a module, and the names inside of it; at least one."""
    parts = target.split(".")
    for length in range(len(parts) - 1, 0, -1):
        if module := _read(".".join(parts[:length])):
            return module, parts[length:]
    return None


@cache
def _read(name: str) -> _Module | None:
    spec: ModuleSpec | None = None
    places: Any = None
    for i in range(name.count(".") + 1):  # importlib.util.find_spec would import the packages on the way
        full = name if i == name.count(".") else ".".join(name.split(".")[: i + 1])
        spec = PathFinder.find_spec(full, places)
        if spec is None:
            return None
        places = spec.submodule_search_locations
    if spec is None or not (spec.origin or "").endswith(".py"):
        return None
    with open(str(spec.origin), encoding="utf-8") as file:
        tree = ast.parse(file.read())
    module = _Module(name, {}, {}, {})
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            module.defined[node.name] = node
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            module.assigned[node.targets[0].id] = node.value
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            module.imported.update({a.asname or a.name: (node.module, a.name) for a in node.names})
    return module


def _of_class(module: _Module, node: ast.ClassDef) -> Arguments:
    """Those of its own or inherited `__init__`, or of the fields of a dataclass."""
    lineage = list(_lineage(module, node))
    eldest, last = lineage[-1]
    unread = [base for base in last.bases if ast.unparse(base) != "ABC" and not _class_named(eldest, ast.unparse(base))]
    found = Arguments(node.name, {}, more=bool(unread))
    for where, own in reversed(lineage):  # the eldest first, as a dataclass has its fields
        init = next((n for n in own.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
        if init is not None:
            found = replace(_of_function(where, init, bound=True), called=node.name)
        elif any(_is_dataclass(where, decorator) for decorator in own.decorator_list):
            found = replace(found, types=found.types | dict(_fields(where, own)))
    return found


def _is_dataclass(module: _Module, decorator: ast.expr) -> bool:
    called = decorator.func if isinstance(decorator, ast.Call) else decorator
    name = ast.unparse(called)
    return not _DATACLASSES.isdisjoint({name.rpartition(".")[2], module.imported.get(name, ("", ""))[1]})


def _lineage(module: _Module, node: ast.ClassDef) -> Iterator[tuple[_Module, ast.ClassDef]]:
    """The class, its first base, that one's first base, and so on, as far as they can be read."""
    yield module, node
    for base in node.bases[:1]:
        found = _class_named(module, ast.unparse(base))
        if found is not None:
            yield from _lineage(*found)


def _class_named(module: _Module, name: str) -> tuple[_Module, ast.ClassDef] | None:
    node = module.defined.get(name)
    if isinstance(node, ast.ClassDef):
        return module, node
    where, there = module.imported.get(name, ("", ""))
    source = _read(where) if where else None
    return _class_named(source, there) if source else None


def _fields(module: _Module, node: ast.ClassDef) -> Iterator[tuple[str, Any]]:
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            said = ast.unparse(item.annotation)
            given = item.value is None or "init=False" not in ast.unparse(item.value)
            if given and not said.startswith("ClassVar"):
                yield item.target.id, _type(module, item.annotation)


def _of_function(module: _Module, node: ast.FunctionDef, bound: bool) -> Arguments:
    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    types = {a.arg: _type(module, a.annotation) for a in arguments if not (bound and a.arg in _SELF)}
    if (rest := node.args.kwarg) is None:
        return Arguments(node.name, types, more=False)
    spelt = re.fullmatch(r"(?:typing\.)?Unpack\[(\w+)\]", ast.unparse(rest.annotation)) if rest.annotation else None
    found = _class_named(module, spelt[1]) if spelt else None
    return Arguments(node.name, types | dict(_fields(*found)) if found else types, more=found is None)


def _type(module: _Module, annotation: ast.expr | None) -> Any:
    if annotation is None:
        return Any
    try:
        return eval(ast.unparse(annotation), {"__builtins__": {}}, _Names(module))
    except Exception:  # whatever an annotation may raise that was never meant to be read like this
        return Any


class _Names(dict[str, Any]):
    """The names of a module's annotations: types are imported where that is cheap; classes are stood in for."""

    def __init__(self, module: _Module) -> None:
        super().__init__(vars(builtins))
        self.module = module

    def __missing__(self, name: str) -> Any:
        where, there = self.module.imported.get(name, ("", ""))
        if where in _IMPORTED:
            return getattr(sys.modules.get(where) or importlib.import_module(where), there)
        if name in self.module.assigned:
            return eval(ast.unparse(self.module.assigned[name]), {"__builtins__": {}}, self)
        if _class_named(self.module, name):
            return type(name, (), {})  # no value of a config is an instance of it
        raise NameError(name)
