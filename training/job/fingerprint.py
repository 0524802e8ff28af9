"""The fingerprint of the code that computes a stage.

It is taken from source text alone: nothing is imported, so the control plane can compute it without torch. The
fingerprint covers a module and all modules of this project that it imports, directly or not; comments, docstrings and
formatting do not count.

What was read of a file is kept beside Python's own compiled files, by the digest of its bytes. Reading all stages takes
a tenth of a second with it and over a second without.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import json
import os
import platform
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from training.errors import GatehouseError

_ROOT = Path(__file__).resolve().parents[2]
_PACKAGES = {"training": _ROOT / "training", "lmkernels": _ROOT / "kernels" / "lmkernels"}
_DYNAMIC = {"__import__", "import_module", "exec", "eval", "compile"}
_CACHE = Path(__file__).parent / "__pycache__" / "source_facts.json"
_MOST_KEPT = 2000  # every edit of a file adds one
_READER = hashlib.sha256(Path(__file__).read_bytes() + platform.python_version().encode()).hexdigest()


class FingerprintError(GatehouseError):
    """Code whose behaviour its source text does not decide."""


@dataclass(frozen=True)
class _SourceFacts:
    """What the source text of one module says.

    Attributes:
        behaviour: SHA-256 (hex) of the module without comments, docstrings and formatting.
        imports: Dotted names that it imports, wherever; `from a import b` gives `a.b`.
        dynamic: Line and name of the first call that runs code by a name made at run time; empty where there is none.
        relative: Whether it uses a relative import.
    """

    behaviour: str
    imports: tuple[str, ...]
    dynamic: str
    relative: bool


@functools.cache
def fingerprint(module: str) -> str:
    """SHA-256 (hex) of a module and of every project module that it imports.

    Args:
        module: Dotted name, such as `training.stages.corpus`.

    Raises:
        FingerprintError: A module does not exist, or imports or runs code by a name made at run time.
    """
    behaviour: dict[str, str] = {}
    known_before = len(_kept_facts())
    pending = [module]
    while pending:
        name = pending.pop()
        if name in behaviour:
            continue
        behaviour[name], imports = _behaviour(name)
        pending += imports
    if len(_kept_facts()) > known_before:
        _keep(_kept_facts())

    digest = hashlib.sha256()
    for name in sorted(behaviour):
        digest.update(f"{name}\0{behaviour[name]}\0".encode())
    return digest.hexdigest()


@functools.cache
def _behaviour(module: str) -> tuple[str, tuple[str, ...]]:
    """The digest of what one module does, and the modules of this project that it imports."""
    path = _source(module)
    if path is None:
        raise FingerprintError(f"{module} is not a module of this project")

    facts = _facts_of(path)
    if facts.relative:
        raise FingerprintError(f"{module} uses a relative import; write the whole name")
    if facts.dynamic:
        line, called = facts.dynamic.split()
        raise FingerprintError(
            f"{path.name}:{line} calls {called}(): what it runs cannot be fingerprinted; import the module by its name "
            "instead"
        )
    return facts.behaviour, tuple(name for name in map(_project_module, facts.imports) if name)


def _source(module: str) -> Path | None:
    package, *rest = module.split(".")
    if package not in _PACKAGES:
        return None
    base = _PACKAGES[package].joinpath(*rest)
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if path.is_file():
            return path
    return None


def _project_module(imported: str) -> str | None:
    """The module of this project behind an imported name: itself, or the one that defines it."""
    if _source(imported):
        return imported
    parent = imported.rpartition(".")[0]
    return parent if parent and _source(parent) else None


def _facts_of(path: Path) -> _SourceFacts:
    source = path.read_bytes()
    digest = hashlib.sha256(source).hexdigest()
    kept = _kept_facts()
    if digest not in kept:
        kept[digest] = _read(source, path)
    return kept[digest]


def _read(source: bytes, path: Path) -> _SourceFacts:
    tree = ast.parse(source, filename=str(path))
    imports: set[str] = set()
    dynamic, relative = "", False
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imports.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            relative = relative or node.level > 0
            imports.update(f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and not dynamic and (called := _dynamic_call(node.func)):
            dynamic = f"{node.lineno} {called}"
        elif isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            _drop_docstring(node)
    behaviour = hashlib.sha256(ast.unparse(tree).encode()).hexdigest()
    return _SourceFacts(behaviour, tuple(sorted(imports)), dynamic, relative)


def _dynamic_call(called: ast.expr) -> str:
    name = called.id if isinstance(called, ast.Name) else ""
    if isinstance(called, ast.Attribute) and called.attr == "import_module":
        name = called.attr
    return name if name in _DYNAMIC else ""


def _drop_docstring(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> None:
    first = node.body[0] if node.body else None
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        node.body = node.body[1:] or [ast.Pass()]


@functools.cache
def _kept_facts() -> dict[str, _SourceFacts]:
    """What was read before, by the digest of a file; nothing where another reader or another Python kept it."""
    with suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
        kept = json.loads(_CACHE.read_text(encoding="utf-8"))
        if kept["reader"] == _READER:
            return {
                digest: _SourceFacts(facts["behaviour"], tuple(facts["imports"]), facts["dynamic"], facts["relative"])
                for digest, facts in kept["files"].items()
            }
    return {}


def _keep(facts: dict[str, _SourceFacts]) -> None:
    """Write the cache anew; where that is not possible, the next process reads the files again."""
    if sys.dont_write_bytecode:
        return
    temporary = _CACHE.with_suffix(f".{os.getpid()}")
    with suppress(OSError):
        _CACHE.parent.mkdir(exist_ok=True)
        newest = list(facts.items())[-_MOST_KEPT:]
        files = {digest: asdict(entry) for digest, entry in newest}
        temporary.write_text(json.dumps({"reader": _READER, "files": files}), encoding="utf-8")
        temporary.replace(_CACHE)


def project_modules(module: str) -> dict[str, bytes]:
    """The sources that a fingerprint covers, by the name of their module.

    Raises:
        FingerprintError: A module does not exist.
    """
    sources: dict[str, bytes] = {}
    pending = [module]
    while pending:
        name = pending.pop()
        if name in sources:
            continue
        path = _source(name)
        if path is None:
            raise FingerprintError(f"{name} is not a module of this project")
        sources[name] = path.read_bytes()
        pending += [imported for imported in map(_project_module, _facts_of(path).imports) if imported]
    return sources
