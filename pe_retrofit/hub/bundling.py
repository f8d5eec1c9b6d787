"""Merge modules of this package into one flat source file, so that their code can travel with a checkpoint.

Each module's text is kept as it is, comments included; only imports within the package go, and names that two modules
use for different things get the module's name behind them. What a name refers to is decided by Python's scoping rules
(:mod:`.scoping`).
"""

from __future__ import annotations

import ast
import builtins
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from ..errors import ConfigError
from .scoping import Edit, Target, rewrite

ROOT = Path(__file__).resolve().parents[1]
"""The package's folder."""

_REWRITTEN: dict[tuple[str, str, tuple[Edit, ...]], str] = {}
"""Texts by module, what its names became, and the edits: most are the same for every checkpoint."""


@dataclass
class Module:
    """A module of the package.

    Attributes:
        name: dotted, below the package, e.g. ``attention.toeplitz``.
        text, tree: its source.
        package: the dotted name of the package it is in.
        defined: names it defines at its top.
        external: names it imports from elsewhere, as import statements.
        imported: names it takes from the package: (module, name), or (module, None) for the module itself.
    """

    name: str
    text: str
    tree: ast.Module
    package: str
    defined: set[str] = field(default_factory=set)
    external: dict[str, str] = field(default_factory=dict)
    imported: dict[str, tuple[str, str | None]] = field(default_factory=dict)


def bundle(entries: list[str], replace: dict[tuple[str, str], str] | None = None) -> tuple[str, dict[str, str]]:
    """One source text that holds some modules and all they need.

    Args:
        entries: dotted names of modules, below the package.
        replace: values of constants, by module and name, as Python source.

    Returns:
        The text without a head, and where each name of the entries ended up.

    Raises:
        ConfigError: a module uses its package in a way that cannot be flattened.
    """
    modules = _closure(entries)
    names = _unique_names(modules)
    parts = ["\n".join(_imports({statement for m in modules.values() for statement in m.external.values()}))]
    for name in _in_order(modules, entries):
        body = _body(modules[name], modules, names, replace or {})
        if body.strip():
            path = f"pe_retrofit/{name.replace('.', '/')}.py"
            parts.append(f"# {path}\n\n{body.strip()}")
    where = {key: names[owner] for e in entries for key in modules[e].defined if (owner := (e, key)) in names}
    return "\n\n\n".join(parts) + "\n", where


def _path(name: str) -> Path:
    path = ROOT.joinpath(*name.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _exists(name: str) -> bool:
    return bool(name) and _path(name).is_file()


@cache
def _read(name: str) -> Module:
    path = _path(name)
    text = path.read_text(encoding="utf-8")
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    module = Module(name, text, ast.parse(text), package)
    for statement in top_level(module.tree):
        if isinstance(statement, ast.ImportFrom) and statement.level:
            module.imported |= relative_names(module, statement)
        elif isinstance(statement, (ast.Import, ast.ImportFrom)):
            module.external |= _external_names(statement)
        else:
            module.defined |= _bound_by(statement)
    module.defined -= {"__all__"}
    return module


def top_level(tree: ast.Module) -> list[ast.stmt]:
    """Statements of a module, without its docstring and what only a type checker sees."""
    body = tree.body[1:] if ast.get_docstring(tree) is not None else tree.body
    return [s for s in body if not _for_types_only(s)]


def _for_types_only(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.If) and ast.unparse(statement.test).endswith("TYPE_CHECKING")


def relative_names(module: Module, statement: ast.ImportFrom) -> dict[str, tuple[str, str | None]]:
    """What a relative import binds: (module, name), or (module, None) for a module."""
    above = module.package.split(".") if module.package else []
    base = ".".join([*above[: len(above) - statement.level + 1], *([statement.module] if statement.module else [])])
    found: dict[str, tuple[str, str | None]] = {}
    for alias in statement.names:
        inner = f"{base}.{alias.name}" if base else alias.name
        found[alias.asname or alias.name] = (inner, None) if _exists(inner) else (base, alias.name)
    return found


def _external_names(statement: ast.Import | ast.ImportFrom) -> dict[str, str]:
    if isinstance(statement, ast.ImportFrom) and statement.module == "__future__":
        return {}
    start = "import" if isinstance(statement, ast.Import) else f"from {statement.module} import"
    return {
        (a.asname or a.name.partition(".")[0]): f"{start} {a.name}" + (f" as {a.asname}" if a.asname else "")
        for a in statement.names
        if a.name != "TYPE_CHECKING"
    }


def _bound_by(statement: ast.stmt) -> set[str]:
    if isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
        return {statement.name}
    return {n.id for n in ast.walk(statement) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}


def _needs(module: Module, *, at_once: bool) -> list[str]:
    """Modules it imports, anywhere or (``at_once``) when it is imported itself."""
    if at_once:
        pairs = list(module.imported.values())
    else:
        hidden = {id(n) for s in module.tree.body if _for_types_only(s) for n in ast.walk(s)}
        pairs = [
            pair
            for node in ast.walk(module.tree)
            if isinstance(node, ast.ImportFrom) and node.level and id(node) not in hidden
            for pair in relative_names(module, node).values()
        ]
    return list(dict.fromkeys(name for name, _ in pairs))


def _closure(entries: list[str]) -> dict[str, Module]:
    found: dict[str, Module] = {}
    todo = list(entries)
    while todo:
        name = todo.pop()
        if name not in found:
            found[name] = _read(name)
            todo += _needs(found[name], at_once=False)
    return found


def _in_order(modules: dict[str, Module], entries: list[str]) -> list[str]:
    """Each module after those it needs when it is imported."""
    order: list[str] = []
    begun: set[str] = set()

    def visit(name: str) -> None:
        if name in begun:
            return
        begun.add(name)
        for needed in _needs(modules[name], at_once=True):
            visit(needed)
        order.append(name)

    for name in [*entries, *sorted(modules)]:
        visit(name)
    return order


def _unique_names(modules: dict[str, Module]) -> dict[tuple[str, str], str]:
    """A name for everything that modules define, which nothing else has."""
    external: dict[str, str] = {}
    for module in modules.values():
        for name, statement in module.external.items():
            if external.setdefault(name, statement) != statement:
                raise ConfigError(f"{module.name} imports {name!r} by {statement!r}, another by {external[name]!r}.")
    taken = {*external, *dir(builtins)}
    owners: dict[str, list[str]] = {}
    for name in sorted(modules):
        for key in sorted(modules[name].defined):
            owners.setdefault(key, []).append(name)
    names: dict[tuple[str, str], str] = {}
    for key, where in sorted(owners.items()):
        for module_name in where:
            shared = key in taken or len(where) > 1
            names[module_name, key] = f"{key}_in_{module_name.replace('.', '_')}" if shared else key
    if len(set(names.values())) < len(names):
        raise ConfigError("Two names became the same in the flat file.")
    return names


def _resolve(
    pair: tuple[str, str | None], modules: dict[str, Module], names: dict[tuple[str, str], str]
) -> str | dict[str, str]:
    """The name in the flat file; for a module, the names of what it has."""
    module_name, key = pair
    module = modules[module_name]
    if key is None:
        own = {k: names[module_name, k] for k in module.defined}
        through = {k: _resolve(p, modules, names) for k, p in module.imported.items() if p[1] is not None}
        return {**own, **{k: v for k, v in through.items() if isinstance(v, str)}}
    if (module_name, key) in names:
        return names[module_name, key]
    if key in module.imported:
        return _resolve(module.imported[key], modules, names)
    if key in module.external:
        return key
    raise ConfigError(f"{module_name} has no {key!r}.")


def _body(
    module: Module,
    modules: dict[str, Module],
    names: dict[tuple[str, str], str],
    replace: dict[tuple[str, str], str],
) -> str:
    """The module's text for the flat file."""
    mapping: dict[str, Target] = {key: names[module.name, key] for key in module.defined}
    mapping |= {key: _resolve(pair, modules, names) for key, pair in module.imported.items()}
    edits: list[Edit] = []
    for statement in module.tree.body:
        docstring = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
        imports = isinstance(statement, (ast.Import, ast.ImportFrom))
        exports = isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "__all__"
        if (docstring and statement is module.tree.body[0]) or imports or exports or _for_types_only(statement):
            edits.append(Edit.of(statement, ""))
        elif isinstance(statement, ast.Assign) and (key := (module.name, ast.unparse(statement.targets[0]))) in replace:
            edits.append(Edit.of(statement.value, replace[key]))

    def lazily(statement: ast.ImportFrom) -> dict[str, Target]:
        return {key: _resolve(pair, modules, names) for key, pair in relative_names(module, statement).items()}

    like_this = (module.name, repr(sorted(mapping.items())), tuple(edits))
    if like_this not in _REWRITTEN:
        _REWRITTEN[like_this] = rewrite(module.text, module.tree, mapping, lazily, edits)
    return _REWRITTEN[like_this]


def _imports(statements: set[str]) -> list[str]:
    """Import statements, those from one module together."""
    together: dict[str, list[str]] = {}
    for statement in sorted(statements):
        start, _, name = statement.rpartition(" import ")
        together.setdefault(start, []).append(name if start else statement)
    lines = together.pop("", [])
    for start, names in sorted(together.items()):
        line = f"{start} import {', '.join(names)}"
        lines.append(line if len(line) <= 120 else f"{start} import (\n    " + ",\n    ".join(names) + ",\n)")
    return lines
