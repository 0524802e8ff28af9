"""A foreign chat template in a process of its own: a line of JSON comes in for each conversation, and one goes out.

`template_process` starts this file by its path, so it imports nothing of Gatehouse. The template runs in jinja2's
immutable sandbox with what transformers gives it, without a loader and with limits on memory and processor time.
"""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import json
import re
import resource
import signal
import sys
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

_PR_SET_PDEATHSIG = 1  # prctl(2)
_REASONING = ("reasoning_content", "thinking", "reasoning")
_SHORTEST_BORDER = 2
_TAG = re.compile(r"\{%-?\s*generation\s*-?%\}")


class _Generation(Extension):
    """transformers' tag `{% generation %}`: what is inside comes out between two marks that no template knows."""

    tags = {"generation"}
    marks = ("", "")

    def parse(self, parser: Any) -> Any:
        """The block as a call."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_marked"), [], [], body).set_lineno(line)

    def _marked(self, caller: Any) -> str:
        return f"{self.marks[0]}{caller()}{self.marks[1]}"


class _Dict:
    """What transformers calls `dict` in a template: it makes dictionaries, and leads to nothing else."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


def _raise_exception(message: object) -> None:
    raise jinja2.TemplateError(str(message))


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _environment(day: datetime.datetime, marks: tuple[str, str]) -> ImmutableSandboxedEnvironment:
    extension = type("_Marked", (_Generation,), {"marks": marks, "identifier": "generation"})
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[extension, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {
        "raise_exception": _raise_exception,
        "strftime_now": day.strftime,
        "dict": _Dict(),
    }
    return environment


def _refuse_files(tree: nodes.Template) -> None:
    for node in tree.find_all((nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends)):
        kind = type(node).__name__.lower()
        raise jinja2.TemplateError(f"line {node.lineno}: a chat template may not read other files ({kind})")


def _borders(tree: nodes.Template) -> list[str]:
    """Texts that the template looks for or cuts at, such as `</think>`: they decide what it makes of a content."""
    inner: list[Any] = []
    for compared in tree.find_all(nodes.Compare):
        inner += [compared.expr, *compared.ops]
    called: list[Any] = [*tree.find_all((nodes.Call, nodes.Filter, nodes.Test))]
    for node in called:
        inner += [*(node.args or ()), *(node.kwargs or ())]
    texts = {
        constant.value
        for part in inner
        for constant in ([part] if isinstance(part, nodes.Const) else part.find_all(nodes.Const))
        if isinstance(constant.value, str)
    }
    return sorted(
        text.strip()
        for text in texts
        if len(text.strip()) >= _SHORTEST_BORDER and not text.strip().replace("_", "").replace(" ", "").isalnum()
    )


def _with_reasoning(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages whose reasoning stands under each of the names that templates read, as transformers gives them."""
    results = []
    for message in messages:
        thought = next((message[key] for key in _REASONING if message.get(key) is not None), None)
        known = message if thought is None else {"thinking": thought, **message, "reasoning_content": thought}
        results.append(known)
    return results


def _load_everything(environment: jinja2.Environment) -> None:
    """Use what libraries load on first use: later no file can be opened."""
    environment.from_string("{{ strftime_now('%d %b %Y') }}{{ 'a\\n' | trim | title | tojson }}").render()
    for fault in ("{% if %}", "{{ nothing.at.all }}", "{{ raise_exception('x') }}"):
        with contextlib.suppress(jinja2.TemplateError):
            environment.from_string(fault).render()


def _limit_resources(memory: int) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))  # the three streams that are open already
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))


def _allow_seconds(seconds: int) -> None:
    """Let the kernel end this process after some more seconds of processor time."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    used = int(usage.ru_utime + usage.ru_stime)
    resource.setrlimit(resource.RLIMIT_CPU, (used + seconds + 1, resource.RLIM_INFINITY))


def _render(template: jinja2.Template, request: dict[str, Any], variables: dict[str, str], longest: int) -> str:
    text = template.render(
        messages=_with_reasoning(request["messages"]),
        tools=request.get("tools") or None,
        documents=None,
        add_generation_prompt=bool(request.get("prompt")),
        **variables,
    )
    if len(text) > longest + 16 * request.get("size", 0):
        raise MemoryError
    return text


def _in_words(error: BaseException) -> str:
    if isinstance(error, MemoryError):
        return "it needs more memory than a chat template may use"
    if isinstance(error, RecursionError):
        return "it calls itself too often"
    text = getattr(error, "message", None) or str(error) or type(error).__name__
    line = f"line {error.lineno}: " if isinstance(error, jinja2.TemplateSyntaxError) else ""
    return line + str(text)[:300]


def main() -> int:
    """Read the setting, then answer until the input ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    setting = json.loads(sys.stdin.readline())
    day = datetime.datetime.fromisoformat(setting["date"])
    environment = _environment(day, tuple(setting["marks"]))
    _load_everything(environment)
    _limit_resources(setting["memory"])
    _allow_seconds(setting["seconds"])

    answer: dict[str, Any]
    try:
        tree = environment.parse(setting["template"])
        _refuse_files(tree)
        template = environment.from_string(setting["template"])
        has_marks = _TAG.search(setting["template"]) is not None
        answer = {"borders": _borders(tree), "has_marks": has_marks}
    except Exception as error:  # a template can lead to any error; it goes to whoever asked
        answer = {"error": _in_words(error)}
    print(json.dumps(answer), flush=True)
    if "error" in answer:
        return 0

    for line in sys.stdin:
        _allow_seconds(setting["seconds"])
        try:
            answer = {"text": _render(template, json.loads(line), setting["variables"], setting["longest"])}
        except Exception as error:
            answer = {"error": _in_words(error)}
        try:
            answer_line = json.dumps(answer)
        except MemoryError as error:
            answer_line = json.dumps({"error": _in_words(error)})
        print(answer_line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
