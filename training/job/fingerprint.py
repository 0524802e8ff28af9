"""The fingerprint of the code that computes a stage.

It is taken from source text alone: nothing is imported, so the control plane can compute it without torch. The
fingerprint covers a module and all modules of this project that it imports, directly or not; comments, docstrings and
formatting do not count.
"""

from __future__ import annotations

import ast
import functools
import hashlib
from pathlib import Path

from training.errors import GatehouseError

_ROOT = Path(__file__).resolve().parents[2]
_PACKAGES = {"training": _ROOT / "training", "lmkernels": _ROOT / "kernels" / "lmkernels"}
_DYNAMIC = {"__import__", "import_module", "exec", "eval", "compile"}


class FingerprintError(GatehouseError):
    """Code whose behaviour its source text does not decide."""


@functools.cache
def fingerprint(module: str) -> str:
    """SHA-256 (hex) of a module and of every project module that it imports.

    Args:
        module: Dotted name, such as `training.stages.corpus`.

    Raises:
        FingerprintError: A module does not exist, or imports or runs code by a name made at run time.
    """
    seen: dict[str, str] = {}
    todo = [module]
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        path = _source(name)
        if path is None:
            raise FingerprintError(f"{name} is not a module of this project")
        tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
        _refuse_dynamic(tree, path)
        todo += [found for found in _imports(tree, name) if found not in seen]
        seen[name] = ast.unparse(_without_docstrings(tree))
    digest = hashlib.sha256()
    for name in sorted(seen):
        digest.update(f"{name}\0{seen[name]}\0".encode())
    return digest.hexdigest()


def _source(module: str) -> Path | None:
    package, *rest = module.split(".")
    if package not in _PACKAGES:
        return None
    base = _PACKAGES[package].joinpath(*rest)
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if path.is_file():
            return path
    return None


def _imports(tree: ast.Module, module: str) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names if _source(alias.name))
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise FingerprintError(f"{module} uses a relative import; write the whole name")
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                found.update([name] if _source(name) else [node.module] if node.module and _source(node.module) else [])
    return found


def _refuse_dynamic(tree: ast.Module, path: Path) -> None:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = node.func
            name = (
                called.id
                if isinstance(called, ast.Name)
                else called.attr
                if (isinstance(called, ast.Attribute) and called.attr == "import_module")
                else ""
            )
            if name in _DYNAMIC:
                raise FingerprintError(
                    f"{path.name}:{node.lineno} calls {name}(): what it runs cannot be "
                    "fingerprinted; import the module by its name instead"
                )


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            body = node.body
            if (
                body
                and isinstance(body[0], ast.Expr)
                and isinstance(body[0].value, ast.Constant)
                and isinstance(body[0].value.value, str)
            ):
                node.body = body[1:] or [ast.Pass()]
    return tree


def project_modules(module: str) -> dict[str, ast.Module]:
    """The syntax trees that a fingerprint covers, by the name of their module.

    Raises:
        FingerprintError: A module does not exist.
    """
    trees: dict[str, ast.Module] = {}
    todo = [module]
    while todo:
        name = todo.pop()
        if name in trees:
            continue
        path = _source(name)
        if path is None:
            raise FingerprintError(f"{name} is not a module of this project")
        trees[name] = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
        todo += _imports(trees[name], name)
    return trees
