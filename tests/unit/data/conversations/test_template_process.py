"""Foreign templates are held in bounds, and what they do with each role and feature is seen beforehand."""

from __future__ import annotations

import datetime
import re
from pathlib import Path
from typing import Any

import jinja2
import jinja2.sandbox
import pytest

from tests.unit.data.conversations.chat_tokenizers import STYLES, write
from training.data.conversations.chat_format import ChatFormat, Conversation, check
from training.data.conversations.named_templates import NAMES, SPECIAL_TOKENS, exported, named_template
from training.data.conversations.template_probe import features_of, probe_template
from training.data.conversations.template_process import Limits, Request, TemplateProcess, TemplateRefused

QUESTION = [{"role": "user", "content": "q"}]
TALK = [*QUESTION, {"role": "assistant", "content": "a"}]
SMALL = Limits(seconds=1, wall_seconds=30, memory=2**28, longest=2**20)
CALL = {"function": {"name": "f", "arguments": {"x": "y"}}}


def process(template: str, **kwargs: Any) -> TemplateProcess:
    return TemplateProcess(template, "t.jinja", {"bos_token": "<s>"}, limits=SMALL, **kwargs)


@pytest.mark.parametrize(
    ("template", "match"),
    [
        ("{% include '/etc/passwd' %}", "line 1: a chat template may not read other files .include"),
        ("{% import 'x' as x %}", "may not read other files .import"),
        ("{% extends 'x' %}", "may not read other files .extends"),
        ("{% if %}", "line 1: "),
    ],
)
def test_a_template_that_reads_files_or_does_not_parse_is_refused(template: str, match: str) -> None:
    with pytest.raises(TemplateRefused, match=f"t.jinja: this chat template cannot be used: .*{match}"):
        process(template)


@pytest.mark.parametrize(
    ("template", "match"),
    [
        ("{{ messages.__class__.__mro__ }}", "unsafe|access to attribute"),
        ("{{ ''.__class__.__mro__ }}", "unsafe|access to attribute"),
        ("{{ messages.append(1) }}", "unsafe|not safely callable"),
        ("{% for i in range(1000000000) %}{% endfor %}", "[Rr]ange"),
        ("{{ 'x' * 1000000000 }}", "more memory"),
        ("{{ 'x' * 5000000 }}", "more memory"),
        ("{{ raise_exception('no such role') }}", "no such role"),
        ("{{ nothing.at.all }}", "undefined"),
    ],
)
def test_a_hostile_template_is_an_error_of_the_row(template: str, match: str) -> None:
    one = process(template)
    first, second = one.render([Request(TALK)] * 2)
    assert first.text == second.text == ""
    assert re.search(match, first.error), first.error
    one.close()


def test_a_template_that_does_not_end_is_ended() -> None:
    loops = "{% for a in range(99999) %}" * 3 + "{% endfor %}" * 3
    one = process("{% if messages[0].content == 'loop' %}" + loops + "{% else %}{{ messages[0].content }}{% endif %}")
    looping = Request([{"role": "user", "content": "loop"}], where="a.jsonl:9")
    with pytest.raises(TemplateRefused, match="a.jsonl:9: the chat template t.jinja takes more than 1 seconds of proc"):
        one.render([Request(TALK), looping, Request(TALK)])
    assert [rendering.text for rendering in one.render([Request(TALK)])] == ["q"], "another process goes on"


def test_many_rows_share_one_process() -> None:
    one = process("{{ messages[0].content }}")
    assert one._process is not None
    started = one._process.pid
    requests = [Request([{"role": "user", "content": str(number) * 300}]) for number in range(2000)]
    assert [rendering.text for rendering in one.render(requests)] == [str(number) * 300 for number in range(2000)]
    assert one._process is not None and one._process.pid == started
    one.close()


def test_today_is_a_fixed_day() -> None:
    template = "{{ strftime_now('%d %b %Y') }}"
    days = [datetime.date(2026, 1, 1), datetime.date(2026, 1, 1), datetime.date(2025, 7, 2)]
    assert [process(template, date=day).render([Request(TALK)])[0].text for day in days] == [
        "01 Jan 2026",
        "01 Jan 2026",
        "02 Jul 2025",
    ]


def test_marks_are_found_and_taken_out() -> None:
    one = process("a{% generation %}{{ messages[0].content }}{% endgeneration %}b{% generation %}{% endgeneration %}")
    (rendering,) = one.render([Request(TALK)])
    assert (rendering.text, rendering.marked) == ("aqb", ((1, 2), (3, 3)))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("tokenizers")
    return {name: write(root / name, *style()) for name, style in STYLES.items()}


_HOME = {
    "chatml": "qwen3",
    "llama3": "llama3",
    "mistral": "mistral",
    "gemma": "gemma",
    "alpaca": "llama3",
    "plain": "qwen3",
}


@pytest.mark.parametrize("name", NAMES)
def test_a_named_template_trains_and_renders_everywhere(name: str, folders: dict[str, Path]) -> None:
    chat = ChatFormat.load(folders[_HOME[name]], name)
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "Be kind."},
        *TALK,
        {"role": "user", "content": " more\n"},
        {"role": "assistant", "content": "b c"},
    ]
    conversation = Conversation(messages)
    (encoded,) = chat.encode([conversation])
    check(chat, conversation, encoded)
    assert len(encoded.turns) == 2
    probe_template(chat, features_of([conversation]))

    text = chat.render(messages)
    parts = [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in messages]
    tokens = chat.variables  # type: ignore[attr-defined]
    for environment in (
        jinja2.Environment(),
        jinja2.sandbox.ImmutableSandboxedEnvironment(),
        jinja2.Environment(trim_blocks=True, lstrip_blocks=True),
    ):
        template = environment.from_string(chat.exported)
        assert template.render(messages=messages, **tokens) == text
        assert template.render(messages=parts, **tokens) == text
        nothing = [QUESTION[0], {"role": "assistant", "content": None}]
        assert "None" not in template.render(messages=nothing, **tokens)
        assert "generation" not in chat.exported.replace("add_generation_prompt", "")
    assert set(SPECIAL_TOKENS.get(name, ())) <= set(tokens.values()) | set(chat.tokens.added)  # type: ignore[attr-defined]


def test_a_named_template_without_its_tokens_says_so(folders: dict[str, Path]) -> None:
    with pytest.raises(TemplateRefused, match="chatml: it does not end an answer with one of the tokenizer's added"):
        ChatFormat.load(folders["llama3"], "chatml")
    with pytest.raises(TemplateRefused, match="chat_template: nothing is no .jinja file, and none of chatml, "):
        ChatFormat.load(folders["llama3"], "nothing")


def test_an_exported_template_is_the_same_text(folders: dict[str, Path]) -> None:
    marked = "{% for m in messages %}{%- generation -%} {{ m.content }} {%- endgeneration -%} x{% endfor %}"
    assert jinja2.Environment().from_string(exported(marked)).render(messages=TALK) == "qxax"
    chat = ChatFormat.load(folders["llama3"])
    parts = [{"role": "user", "content": [{"type": "text", "text": "q"}]}, TALK[1]]
    plain = jinja2.Environment().from_string(chat.exported)
    assert plain.render(messages=parts, bos_token="<|begin_of_text|>") == chat.render(TALK)
    assert named_template("plain", True) != named_template("plain", False)


def test_features_are_those_that_the_data_use() -> None:
    messages = [
        {"role": "system", "content": "s"},
        {"role": "assistant", "content": "a", "tool_calls": [CALL]},
        {"role": "tool", "content": "r"},
        {"role": "user", "content": "q"},
        {"role": "user", "content": "q"},
    ]
    assert features_of([Conversation(messages, [{"x": 1}])]) == {
        "role system",
        "role tool",
        "tools",
        "tool calls",
        "assistant first",
        "two users in a row",
    }
    assert features_of([Conversation(TALK)]) == frozenset()


@pytest.mark.parametrize(
    ("style", "feature", "match"),
    [
        ("qwen3", "role developer", "leaves out the text of the role developer"),
        ("llama3", "tool calls", "leaves out the tool call of the role assistant|cannot be found"),
        ("llama3", "tools", "leaves out the name of a tool"),
        ("gemma", "role system", "System role not supported"),
        ("gemma", "assistant first", "must alternate"),
        ("gemma", "two users in a row", "must alternate"),
        ("mistral", "role tool", "Only user and assistant roles are supported"),
    ],
)
def test_a_probe_names_what_a_template_loses(style: str, feature: str, match: str, folders: dict[str, Path]) -> None:
    chat = ChatFormat.load(folders[style])
    with pytest.raises(TemplateRefused, match=match) as caught:
        probe_template(chat, [feature])
    assert f"{feature}: " in str(caught.value)
    assert str(folders[style] / "chat_template.jinja") in str(caught.value)


def test_a_probe_reports_what_a_template_adds(folders: dict[str, Path]) -> None:
    every = ["role system", "role tool", "tool calls", "tools", "two users in a row", "assistant first", "system later"]
    report = probe_template(ChatFormat.load(folders["qwen3"]), every)
    assert report.added_before_answer == "<think>\n\n</think>\n\n"
    assert (report.added_system, report.prompt_is_prefix, report.starts, report.reads_date) == ("", True, 0, False)
    assert probe_template(ChatFormat.load(folders["qwen2"]), []).added_system.startswith("You are a helpful")
    assert probe_template(ChatFormat.load(folders["llama3"]), []).starts == 1


def test_a_prompt_that_is_not_trained_on_is_reported(tmp_path: Path, folders: dict[str, Path]) -> None:
    path = tmp_path / "thinks.jinja"
    template = (folders["qwen2"] / "chat_template.jinja").read_text()
    path.write_text(template.replace("assistant\n' }}{% endif %}", "assistant\n<think>\n' }}{% endif %}"))
    report = probe_template(ChatFormat.load(folders["qwen2"], str(path)), [])
    assert not report.prompt_is_prefix
    assert report.prompt_differs is not None
    assert report.prompt_differs[0] == "<think>\n"
