"""Rename what refers to the top of a module, by Python's scoping rules, and leave the rest of the text alone."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ..errors import ConfigError

Target = str | dict[str, str]
"""What a name becomes; for a module that is imported by name: what its attributes become."""

Frame = dict[str, Target | None]
"""The names of one scope: None for its own, a target for what it imports from the package."""

Scope = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef
Comprehension = ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp


@dataclass(frozen=True)
class Edit:
    """Text in place of what lies between two points (lines from 1, columns in UTF-8 bytes)."""

    start: tuple[int, int]
    end: tuple[int, int]
    text: str

    @classmethod
    def of(cls, node: ast.stmt | ast.expr, text: str) -> Edit:
        """In place of a node."""
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        return cls((node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset), text)


def rewrite(
    text: str,
    tree: ast.Module,
    mapping: dict[str, Target],
    lazily: Callable[[ast.ImportFrom], dict[str, Target]],
    edits: list[Edit],
) -> str:
    """A module's text with its names replaced.

    Args:
        text, tree: of the module.
        mapping: what names at its top become.
        lazily: what the relative imports within functions bind.
        edits: further ones; what they cover is not looked at.

    Raises:
        ConfigError: a name is used in a way that cannot be replaced.
    """
    found = _Renamer(text, mapping, lazily, edits)
    found.visit(tree)
    return _apply(text, found.edits)


class _Renamer(ast.NodeVisitor):
    def __init__(
        self,
        text: str,
        mapping: dict[str, Target],
        lazily: Callable[[ast.ImportFrom], dict[str, Target]],
        edits: list[Edit],
    ) -> None:
        self.lines = text.splitlines()
        self.mapping, self.lazily, self.edits = mapping, lazily, list(edits)
        self.covered = {(e.start, e.end) for e in edits}
        self.frames: list[tuple[Frame, bool]] = []

    def visit(self, node: ast.AST) -> None:
        """Skip what other edits cover."""
        if isinstance(node, (ast.stmt, ast.expr)) and (Edit.of(node, "").start, Edit.of(node, "").end) in self.covered:
            return
        super().visit(node)

    def target(self, name: str) -> Target | None:
        """What a name becomes where we are; None: it stays."""
        for index, (frame, is_class) in enumerate(reversed(self.frames)):
            if name in frame and (index == 0 or not is_class):
                return frame[name]
        return self.mapping.get(name)

    def visit_Name(self, node: ast.Name) -> None:
        """A reference."""
        target = self.target(node.id)
        if isinstance(target, dict):
            raise ConfigError(f"Line {node.lineno}: the module {node.id!r} is used as a value.")
        if target is not None and target != node.id:
            self.edits.append(Edit.of(node, target))

    def visit_Attribute(self, node: ast.Attribute) -> None:
        """``module.name`` becomes the name alone."""
        target = self.target(node.value.id) if isinstance(node.value, ast.Name) else None
        if isinstance(target, dict):
            if node.attr not in target:
                raise ConfigError(f"Line {node.lineno}: {ast.unparse(node)} is not there.")
            self.edits.append(Edit.of(node, target[node.attr]))
        else:
            self.generic_visit(node)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        """Imports from the package go; the scope knows what they bound."""
        if node.level:
            self.edits.append(Edit.of(node, "pass"))

    def visit_Global(self, node: ast.Global) -> None:
        """Names here have no position of their own."""
        if any(self.mapping.get(n, n) != n for n in node.names):
            raise ConfigError(f"Line {node.lineno}: {ast.unparse(node)} names something that is renamed.")

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        """Decorators, defaults and annotations belong outside, the body inside."""
        self._rename_definition(node)
        for outside in [*node.decorator_list, *node.args.defaults, *filter(None, node.args.kw_defaults)]:
            self.visit(outside)
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs, node.args.vararg, node.args.kwarg]
        for annotation in [node.returns, *(a.annotation for a in arguments if a is not None)]:
            if annotation is not None:
                self.visit(annotation)
        self._inside(self._frame(node), False, node.body)

    visit_AsyncFunctionDef = visit_FunctionDef  # type: ignore[assignment]  # noqa: N815

    def visit_Lambda(self, node: ast.Lambda) -> None:
        """As a function."""
        for outside in [*node.args.defaults, *filter(None, node.args.kw_defaults)]:
            self.visit(outside)
        self._inside(self._frame(node), False, [node.body])

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        """Names of the body are not seen by the functions in it."""
        self._rename_definition(node)
        for outside in [*node.decorator_list, *node.bases, *(k.value for k in node.keywords)]:
            self.visit(outside)
        self._inside(self._frame(node), True, node.body)

    def _comprehension(self, node: Comprehension) -> None:
        """The first iterable belongs outside, all else inside."""
        self.visit(node.generators[0].iter)
        frame: Frame = {n: None for g in node.generators for n in _stored([g.target])}
        values = [node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt]
        conditions = [c for g in node.generators for c in g.ifs]
        self._inside(frame, False, [*values, *conditions, *(g.iter for g in node.generators[1:])])

    visit_ListComp = visit_SetComp = visit_DictComp = visit_GeneratorExp = _comprehension  # noqa: N815

    def _inside(self, frame: Frame, is_class: bool, nodes: Iterable[ast.AST]) -> None:
        self.frames.append((frame, is_class))
        for node in nodes:
            self.visit(node)
        self.frames.pop()

    def _rename_definition(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> None:
        target = self.target(node.name)
        if not isinstance(target, str) or target == node.name:
            return
        column = self.lines[node.lineno - 1].index(node.name, node.col_offset + len("def"))
        place = (node.lineno, column)
        self.edits.append(Edit(place, (node.lineno, column + len(node.name)), target))

    def _frame(self, node: Scope) -> Frame:
        """The names that a scope binds."""
        body = [node.body] if isinstance(node, ast.Lambda) else node.body
        frame: Frame = dict.fromkeys(_stored(body))
        if not isinstance(node, ast.ClassDef):
            arguments = node.args
            every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
            frame |= {a.arg: None for a in every if a is not None}
        for statement in _own_statements(body):
            if isinstance(statement, ast.ImportFrom) and statement.level:
                frame |= self.lazily(statement)
            elif isinstance(statement, (ast.Global, ast.Nonlocal)):
                frame = {k: v for k, v in frame.items() if k not in statement.names}
        return frame


def _own_statements(nodes: Iterable[ast.AST]) -> Iterable[ast.AST]:
    """All nodes of a scope, without those of the scopes in it (whose definitions themselves count)."""
    for node in nodes:
        yield node
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)):
            continue
        if isinstance(node, (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)):
            yield from (n for n in ast.walk(node) if isinstance(n, ast.NamedExpr))
            continue
        yield from _own_statements(ast.iter_child_nodes(node))


def _stored(nodes: Iterable[ast.AST]) -> set[str]:
    found: set[str] = set()
    for node in _own_statements(nodes):
        if isinstance(node, ast.Name) and isinstance(node.ctx, (ast.Store, ast.Del)):
            found.add(node.id)
        elif isinstance(node, ast.NamedExpr):
            found.add(node.target.id)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, ast.ExceptHandler):
            found |= {node.name} if node.name else set()
        elif isinstance(node, (ast.Import, ast.ImportFrom)) and not getattr(node, "level", 0):
            found |= {a.asname or a.name.partition(".")[0] for a in node.names}
    return found


def _apply(text: str, edits: list[Edit]) -> str:
    lines = [line.encode() for line in text.splitlines(keepends=True)]
    for edit in sorted(edits, key=lambda e: e.start, reverse=True):
        (first, begin), (last, end) = edit.start, edit.end
        before, after = lines[first - 1][:begin], lines[last - 1][end:]
        lines[first - 1 : last] = [before + edit.text.encode() + after]
    return b"".join(lines).decode()
