"""Chat templates that a recipe can name, and the form of a template that every Jinja can parse."""

from __future__ import annotations

import datetime
import re

from training.errors import InputRefused

_GENERATION = re.compile(r"\{%(-?)\s*(end)?generation\s*(-?)%\}")
_TODAY = re.compile(r"strftime_now\(\s*(['\"])(.*?)\1\s*\)")
_ASKS_TODAY = re.compile(r"strftime_now(?!\s+is\s+(not\s+)?defined)")
_ADDED_IS_LEARNED = "{# gatehouse: what stands before an answer is learned #}"

# Contents become texts before the template proper sees them: parts are joined, and nothing is an empty text.
_TEXTS = (
    "{%- set given = namespace(messages=[]) -%}"
    "{%- for message in messages -%}"
    "{%- set content = namespace(text='') -%}"
    "{%- if message['content'] is string or message['content'] is number -%}"
    "{%- set content.text = message['content']|string -%}"
    "{%- elif message['content'] is mapping -%}"
    "{{- raise_exception('a content is text, a number, or a list of parts of text') -}}"
    "{%- elif message['content'] is defined and message['content'] is not none -%}"
    "{%- for part in message['content'] -%}"
    "{%- if part is string -%}"
    "{%- set content.text = content.text ~ part -%}"
    "{%- elif part['type'] == 'text' -%}"
    "{%- set content.text = content.text ~ (part['text']|string if part['text'] is not none else '') -%}"
    "{%- else -%}"
    "{{- raise_exception('a part of a content is of the type ' ~ part['type'] ~ '; only text is understood') -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- endif -%}"
    "{%- set given.messages = given.messages + [dict(message, content=content.text)] -%}"
    "{%- endfor -%}"
    "{%- set messages = given.messages %}"
)
_UNKNOWN = "{{- raise_exception('unknown role ' ~ message['role'] ~ '; this template has %s') -}}"
_ANSWER = "{% generation %}{{- message['content'] }}"


def _per_role(roles: dict[str, str], others: str = "") -> str:
    parts = []
    for number, (role, text) in enumerate(roles.items()):
        parts.append(f"{{%- {'elif' if number else 'if'} message['role'] == '{role}' -%}}{text}")
    refused = others or _UNKNOWN % ", ".join(roles)
    return "{%- for message in messages -%}" + "".join(parts) + "{%- else -%}" + refused + "{%- endif -%}{%- endfor -%}"


_CALLS = (
    "{%- for call in message['tool_calls'] or [] -%}"
    "{%- set call = call['function'] if call['function'] is defined else call -%}"
    "{{- '\\n' if message['content'] or not loop.first else '' -}}"
    "{{- '<tool_call>\\n{\"name\": ' ~ (call['name']|tojson) ~ ', \"arguments\": ' -}}"
    "{{- call['arguments'] if call['arguments'] is string else call['arguments']|tojson -}}"
    "{{- '}\\n</tool_call>' -}}"
    "{%- endfor -%}"
)
_TOOLS = (
    "{%- if tools -%}"
    "{{- 'You may call these functions. Answer with a JSON object of name and arguments between <tool_call> and "
    "</tool_call>.\\n' -}}"
    "{%- for tool in tools -%}{{- tool|tojson ~ '\\n' -}}{%- endfor -%}"
    "{%- endif -%}"
)
_NO_CALLS = (
    "{%- if tools -%}{{- raise_exception('this template has no tools') -}}{%- endif -%}"
    "{%- for message in messages -%}{%- if message['tool_calls'] -%}"
    "{{- raise_exception('this template has no tool calls') -}}"
    "{%- endif -%}{%- endfor -%}"
)

_CHATML = (
    "{%- if tools -%}{{- '<|im_start|>system\\n' -}}"
    + _TOOLS
    + "{{- '<|im_end|>\\n' -}}{%- endif -%}"
    + _per_role(
        {
            "assistant": "{{- '<|im_start|>assistant\\n' -}}"
            + _ANSWER
            + _CALLS
            + "{{- '<|im_end|>' -}}{% endgeneration %}{{- '\\n' -}}"
        },
        "{{- '<|im_start|>' ~ message['role'] ~ '\\n' ~ message['content'] ~ '<|im_end|>\\n' -}}",
    )
    + "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)
_HEADER = "'<|start_header_id|>' ~ {} ~ '<|end_header_id|>\\n\\n'"
_LLAMA3 = (
    "{%- if tools -%}{{- " + _HEADER.format("'system'") + " -}}" + _TOOLS + "{{- '<|eot_id|>' -}}{%- endif -%}"
    "{%- for message in messages -%}"
    "{{- " + _HEADER.format("('ipython' if message['role'] == 'tool' else message['role'])") + " -}}"
    "{%- if message['role'] == 'assistant' -%}"
    + _ANSWER
    + _CALLS
    + "{{- '<|eot_id|>' -}}{% endgeneration %}"
    + "{%- else -%}{{- message['content'] ~ '<|eot_id|>' -}}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- " + _HEADER.format("'assistant'") + " -}}{%- endif -%}"
)
_SYSTEM_FIRST = (
    "{%- set first = namespace(system='') -%}"
    "{%- if messages and messages[0]['role'] == 'system' -%}"
    "{%- set first.system = messages[0]['content'] ~ '\\n\\n' -%}"
    "{%- set messages = messages[1:] -%}"
    "{%- endif -%}"
)
_WITH_SYSTEM = "{%- set system = first.system -%}{%- set first.system = '' -%}"
_MISTRAL = (
    _NO_CALLS
    + _SYSTEM_FIRST
    + _per_role(
        {
            "user": _WITH_SYSTEM + "{{- '[INST] ' ~ system ~ message['content'] ~ ' [/INST]' -}}",
            "assistant": "{{- ' ' -}}" + _ANSWER + "{{- eos_token -}}{% endgeneration %}",
        }
    )
)
_GEMMA = (
    _NO_CALLS
    + _SYSTEM_FIRST
    + _per_role(
        {
            "user": _WITH_SYSTEM
            + "{{- '<start_of_turn>user\\n' ~ system ~ message['content'] ~ '<end_of_turn>\\n' -}}",
            "assistant": "{{- '<start_of_turn>model\\n' -}}"
            + _ANSWER
            + "{{- '<end_of_turn>' -}}{% endgeneration %}{{- '\\n' -}}",
        }
    )
    + "{%- if add_generation_prompt -%}{{- '<start_of_turn>model\\n' -}}{%- endif -%}"
)
_ALPACA = (
    _NO_CALLS
    + _per_role(
        {
            "system": "{{- message['content'] ~ '\\n\\n' -}}",
            "user": "{{- '### Instruction:\\n' ~ message['content'] ~ '\\n\\n' -}}",
            "assistant": "{{- '### Response:\\n' -}}"
            + _ANSWER
            + "{{- eos_token -}}{% endgeneration %}{{- '\\n\\n' -}}",
        }
    )
    + "{%- if add_generation_prompt -%}{{- '### Response:\\n' -}}{%- endif -%}"
)
_PLAIN = _NO_CALLS + _per_role(
    {
        "system": "{{- message['content'] -}}",
        "user": "{{- message['content'] -}}",
        "assistant": _ANSWER + "{{- eos_token -}}{% endgeneration %}",
    }
)
_BODIES = {
    "chatml": _CHATML,
    "llama3": _LLAMA3,
    "mistral": _MISTRAL,
    "gemma": _GEMMA,
    "alpaca": _ALPACA,
    "plain": _PLAIN,
}
NAMES = tuple(_BODIES)
SPECIAL_TOKENS = {
    "chatml": ("<|im_start|>", "<|im_end|>"),
    "llama3": ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    "gemma": ("<start_of_turn>", "<end_of_turn>"),
}
"""Tokens that a tokenizer needs for a named template; the others end their answers with the end of a text."""


def named_template(name: str, has_start: bool) -> str:
    """A template with marks of what is learned.

    Args:
        name: One of `NAMES`.
        has_start: The model's texts begin with a start token, so a conversation does too.
    """
    return _TEXTS + ("{{- bos_token -}}" if has_start else "") + _BODIES[name]


def exported(template: str) -> str:
    """The same template for every Jinja: marks of what is learned, which only transformers knows, become no tags."""

    def replaced(match: re.Match[str]) -> str:
        before, is_end, after = match.groups()
        return f"{{%{before} {'endif' if is_end else 'if true'} {after}%}}"

    return _GENERATION.sub(replaced, template)


def marks_learned(template: str) -> bool:
    """Whether a template has tags that mark what is learned."""
    return _GENERATION.search(template) is not None


def with_date(template: str, date: datetime.date) -> str:
    """The template with a day in the place of today's date, so that a row has the same tokens on every day.

    Raises:
        InputRefused: It asks for the date in a way that cannot be told from its text.
    """

    def written(match: re.Match[str]) -> str:
        return repr(date.strftime(match.group(2)))

    dated = _TODAY.sub(written, template)
    if _ASKS_TODAY.search(dated):
        raise InputRefused(
            "the chat template asks for today's date with a format that is no text of its own, so its rows would "
            "change with the day; write the date into a copy and name that as tokenizer.template"
        )
    return dated


def with_added_learned(template: str) -> str:
    """The template with a note for Gatehouse: what it puts before an answer is learned.

    The note is a comment at its end, because the template is what every copy of the tokenizer has. Jinja drops one line
    end there, and would keep it before a comment.
    """
    return template.removesuffix("\n") + _ADDED_IS_LEARNED


def learns_added(template: str) -> bool:
    """Whether a template has the note of `with_added_learned`."""
    return template.endswith(_ADDED_IS_LEARNED)


def with_texts(template: str) -> str:
    """The template, and before it what makes a text of every content: parts are joined, null is an empty text."""
    return template if template.startswith(_TEXTS) else _TEXTS + template
