"""resumen.md and docs/architecture.md name only what exists; resumen.md names every module of the package."""

import ast
import dataclasses
import re
from functools import cache

import pytest

from dsv3.cli import COMMANDS
from dsv3.cli.configs import named_configs
from dsv3.config import TrainConfig
from tests.docs.markdown import ROOT, code_spans

SOURCES = sorted((ROOT / "dsv3").rglob("*.py"))

# Words that belong to others: libraries, tools, formats, files that a command writes.
FOREIGN = """
dsv3 torch torch.distributed transformers triton matplotlib tokenizers safetensors numpy jinja2 tqdm ruff pyright pytest
import-linter pre-commit hypothesis torchrun softmax sigmoid bf16 fp8 fp32 ue8m0 e4m3 None stdout stderr gpu dist slow
../shared .venv out/ .data config.json model.safetensors model.safetensors.index.json tokenizer.json weight_scale_inv
tokenizer_config.json import with assert dataclasses.replace v2 v2lite ipywidgets polib nbval lang LANG .po .ipynb
""".split()


@cache
def members() -> dict[str, set[str]]:
    """What the package defines: under "" every name anywhere, under a class its own members and inherited ones."""
    found: dict[str, set[str]] = {"": set()}
    bases: dict[str, list[str]] = {}
    for path in (*SOURCES, ROOT / "tests/conftest.py"):
        found[""] |= {path.stem, path.parent.name}
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            found[""] |= defined(node)
            if isinstance(node, ast.ClassDef):
                found.setdefault(node.name, set()).update(*(defined(child) for child in ast.walk(node)))
                bases[node.name] = [base.id if isinstance(base, ast.Name) else "" for base in node.bases]
    for name, parents in bases.items():
        found[name] |= set().union(*(found[parent] for parent in parents if parent and parent in found))
    return found


def defined(node: ast.AST) -> set[str]:
    """Functions, classes, parameters, variables and attributes that one node of the syntax tree brings into being."""
    match node:
        case ast.FunctionDef(name=name) | ast.ClassDef(name=name) | ast.arg(arg=name):
            return {name}
        case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
            return {name}
        case _:
            return set()


@cache
def words() -> set[str]:
    """Flags and subcommands of the command line, targets of make, configurations, files' names, foreign words."""
    flags = {flag for path in SOURCES for flag in re.findall(r'"(--[a-z][a-z-]+)"', path.read_text(encoding="utf-8"))}
    flags |= {"--" + field.name.replace("_", "-") for field in dataclasses.fields(TrainConfig)}
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    commands = {*COMMANDS, *(f"dsv3 {command}" for command in COMMANDS), *(f"make {target}" for target in targets)}
    return flags | commands | named_configs().keys() | {path.name for path in SOURCES} | set(FOREIGN)


def exists(span: str) -> bool:
    """Whether a code span names a file, one of the words above, or something that the package defines.

    A dotted name is followed to its end: the last part has to be a member of the class before it.
    """
    if span in words() or (ROOT / span).exists() or (ROOT / "dsv3" / span).exists():
        return True
    name = re.sub(r"^(import|python -m) |\(.*\)$|\.\d+(?=\.)", "", span).removeprefix("dsv3.")
    if not re.fullmatch(r"[A-Za-z_][\w.]*", name):
        return False
    *path, last = name.split(".")
    owner = path[-1] if path and path[-1] in members() else ""
    return all(part in members()[""] for part in path) and last in members()[owner]


@pytest.mark.parametrize("page", ["resumen.md", "docs/architecture.md"])
def test_everything_that_a_page_names_exists(page: str) -> None:
    spans = code_spans(page)
    assert len(spans) > 90
    assert sorted(span for span in spans if not exists(span)) == []


def test_resumen_names_every_module() -> None:
    modules = {path.relative_to(ROOT / "dsv3").as_posix() for path in SOURCES if path.stat().st_size}
    modules -= {"__main__.py", "train/__main__.py"}
    named = {span.removeprefix("dsv3/") for span in code_spans("resumen.md")}
    assert sorted(modules - named) == []


def test_names_that_do_not_exist_are_noticed() -> None:
    assert exists("Tokenizer.encode")
    assert exists("dsv3/layers/mla.py")
    assert not exists("Tokenizer.forward")
    assert not exists("Tokeniser")
    assert not exists("dsv3/layers/mha.py")
    assert not exists("--temprature")
