"""`python -m examples.stdlib_chats FILE.jsonl`: chats about Python's standard library, as OpenAI messages.

Each is a question about a public function, class or method of the running interpreter, and an answer from its
docstring. The modules are parsed and never imported. The same interpreter gives the same bytes.
"""

from __future__ import annotations

import ast
import inspect
import json
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

_LEFT_OUT = frozenset(
    ["test", "tests", "idlelib", "lib2to3", "turtledemo", "encodings", "pydoc_data", "site-packages", "ensurepip"]
)
_QUESTIONS = (
    "What does `{name}` do?",
    "What is `{name}` for?",
    "Explain `{name}` in a few words.",
    "How would you describe `{name}`?",
)
_SHORTEST, _LONGEST = 30, 600  # characters of an answer
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def main(arguments: list[str]) -> int:
    """Write the chats and say how many there are."""
    if len(arguments) != 1:
        print(__doc__, file=sys.stderr)
        return 2
    path = Path(arguments[0])
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = list(chats(Path(sysconfig.get_path("stdlib"))))
    path.write_text("".join(lines), encoding="utf-8")
    print(f"{path}: {len(lines):,} chats about the standard library")
    return 0


def chats(library: Path) -> Iterator[str]:
    """One line of JSON for each documented public definition below a folder of modules."""
    for file in sorted(library.rglob("*.py")):
        module = file.relative_to(library).with_suffix("")
        names = [part for part in module.parts if part != "__init__"]
        if any(part in _LEFT_OUT or part.startswith("_") for part in names):
            continue
        try:
            tree = ast.parse(file.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue  # a template, or a file with another coding
        yield from _of_body(tree.body, ".".join(names))


def _of_body(body: list[ast.stmt], place: str) -> Iterator[str]:
    for node in body:
        if not isinstance(node, Definition) or node.name.startswith("_"):
            continue
        name = f"{place}.{node.name}"
        answer = _answer(node, name)
        if answer:
            question = _QUESTIONS[sum(name.encode()) % len(_QUESTIONS)].format(name=name)
            messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            yield json.dumps({"messages": messages}, ensure_ascii=False) + "\n"
        if isinstance(node, ast.ClassDef):
            yield from _of_body(node.body, name)


def _answer(node: Definition, name: str) -> str:
    """The docstring's first paragraph as prose, and how the function is called; empty where there is too little."""
    paragraphs = inspect.cleandoc(ast.get_docstring(node, clean=False) or "").split("\n\n")
    text = " ".join(paragraphs[0].split())
    if not _SHORTEST <= len(text) <= _LONGEST:
        return ""
    if isinstance(node, ast.ClassDef):
        return text
    return f"{text}\n\nIts signature is `{name.rpartition('.')[2]}({ast.unparse(node.args)})`."


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
