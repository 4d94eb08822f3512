"""Functions as code that a reader can paste: with the imports it needs, under the exercise's own name."""

import ast
import inspect
import sys
from typing import Any

from dsv3.learn.exercises.base import Exercise, Function


def name_of(exercise: Exercise) -> str:
    return exercise.id.replace("-", "_")


def solution(exercise: Exercise) -> str:
    return _code(exercise.solution, name_of(exercise))


def stub(exercise: Exercise) -> str:
    """The buggy code of a "find the bug"; else the solution's signature and docstring with nothing behind them."""
    if exercise.given is not None:
        return _code(exercise.given, name_of(exercise))
    return _code(exercise.solution, name_of(exercise), empty=True)


def _code(function: Function, name: str, *, empty: bool = False) -> str:
    module = ast.parse(inspect.getsource(sys.modules[function.__module__]))
    (definition,) = [n for n in module.body if isinstance(n, ast.FunctionDef) and n.name == function.__name__]
    lines = inspect.getsource(function).splitlines()
    offset = definition.lineno
    if empty:
        docstring = definition.body[0]
        assert isinstance(docstring, ast.Expr), f"{name} has no docstring to start from"
        lines = [*lines[: (docstring.end_lineno or 0) - offset + 1], "    raise NotImplementedError"]
    body = "\n".join(lines).rstrip().replace(f"def {function.__name__}(", f"def {name}(", 1)
    imports = _imports(module, {n.id for n in ast.walk(definition) if isinstance(n, ast.Name)})  # the solution's, too
    return f"{imports}\n\n\n{body}\n" if imports else f"{body}\n"


def _imports(module: ast.Module, used: set[str]) -> str:
    """The import statements of ``module`` cut down to the names in ``used``, in its sections: ours stand apart."""
    sections: list[list[str]] = [[]]
    end = 0
    for node in module.body:
        if not isinstance(node, (ast.Import, ast.ImportFrom)):
            continue
        if node.lineno > end + 1:  # after an empty line
            sections.append([])
        end = node.end_lineno or node.lineno
        names: list[Any] = [alias for alias in node.names if (alias.asname or alias.name.split(".")[0]) in used]
        if names:
            node.names = names
            sections[-1].append(ast.unparse(node))
    return "\n\n".join("\n".join(lines) for lines in sections if lines)


def namespace(code: str) -> dict[str, Any]:
    """What the code defines, run by itself: as a reader's cell would."""
    scope: dict[str, Any] = {}
    exec(compile(code, "<exercise>", "exec"), scope)
    return scope
