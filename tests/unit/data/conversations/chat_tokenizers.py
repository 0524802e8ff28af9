"""Small tokenizers of the kinds that models come with, and chat templates in their styles."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

WORDS = (
    "Name a red fruit. Cherry. And a blue one? Plum. Name a colour. Blue. Another? Red. More? Green. hm",
    "What does it mean? It means nothing. Answer in one word: yes no. The cat sat. Count to nine: one two three",
    "def f():\n    return 1\n\nx = f(y) # 12 34 system user assistant model think Oslo city get_weather",
    '{"name": "get_weather", "arguments": {"city": "Oslo", "x": 1}} <|im_end|> <s> </s> [INST] <end_of_turn>',
)
_LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

LLAMA3 = (
    "{% for message in messages %}{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' "
    "+ message['content'] | trim + '<|eot_id|>' %}{% if loop.first %}{% set content = bos_token + content %}{% endif %}"
    "{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
QWEN3 = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
    {{- 'Tools:' }}
    {%- for tool in tools %}{{- '\\n' }}{{- tool | tojson }}{%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(last=messages|length - 1, looking=true) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.looking and message.role == "user" and not message.content.startswith('<tool_response>') %}
        {%- set ns.looking = false %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == "user" or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set content = message.content %}
        {%- set thought = '' %}
        {%- if message.reasoning_content is defined and message.reasoning_content is not none %}
            {%- set thought = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last and (loop.last or thought) %}
            {{- '<|im_start|>assistant\\n<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' }}
            {{- content.lstrip('\\n') }}
        {%- else %}
            {{- '<|im_start|>assistant\\n' + content }}
        {%- endif %}
        {%- for call in message.tool_calls or [] %}
            {%- if content or not loop.first %}{{- '\\n' }}{%- endif %}
            {%- if call.function %}{%- set call = call.function %}{%- endif %}
            {{- '<tool_call>\\n{"name": "' + call.name + '", "arguments": ' }}
            {{- call.arguments if call.arguments is string else call.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {{- '<|im_start|>user\\n<tool_response>\\n' + message.content + '\\n</tool_response><|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
QWEN2 = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful and kind assistant.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
GEMMA = """{{ bos_token }}
{%- for message in messages -%}
    {%- if message['role'] not in ['user', 'assistant'] -%}
        {{ raise_exception('System role not supported') }}
    {%- endif -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
    {%- endif -%}
    {{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else 'user') + '\\n' }}
    {{- message['content'] | trim }}{{ '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}
"""
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
    "{% if message['tool_calls'] is defined and message['tool_calls'] %}"
    "{{ '[TOOL_CALLS] [' }}{% for call in message['tool_calls'] %}"
    "{{ '{\"name\": \"' + call['function']['name'] + '\", \"arguments\": ' + call['function']['arguments'] + '}' }}"
    "{% endfor %}{{ ']' + eos_token }}"
    "{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)


def _special(*names: str) -> list[AddedToken]:
    return [AddedToken(name, special=True, normalized=False) for name in names]


def _finish(tokenizer: Tokenizer, start: str | None) -> Tokenizer:
    if start is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{start} $A", special_tokens=[(start, tokenizer.token_to_id(start))]
        )
    return tokenizer


def byte_level(specials: tuple[str, ...], more: tuple[str, ...] = (), start: str | None = None) -> Tokenizer:
    """Byte-level BPE with the words of Llama 3, whose special tokens come after its vocabulary."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.normalizer = None if start else normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_LLAMA3_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        WORDS, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    )
    tokenizer.add_special_tokens(_special(*specials))
    tokenizer.add_tokens([AddedToken(name, special=False, normalized=False) for name in more])
    return _finish(tokenizer, start)


def metaspace_bpe(specials: tuple[str, ...], start: str) -> Tokenizer:
    """BPE in the manner of SentencePiece, with bytes for what it cannot spell and a blank before every text."""
    byte_names = [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1, right=0),
        ]
    )
    texts = [word for text in WORDS for word in text.replace("\n", " ").split(" ")]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=["<unk>", *specials, *byte_names], show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    content = json.loads(tokenizer.to_str())
    names = {"<unk>", *specials}
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] in names]
    return _finish(Tokenizer.from_str(json.dumps(content)), start)


def unigram(specials: tuple[str, ...], start: str) -> Tokenizer:
    """Unigram with Metaspace, in whose vocabulary the names of special tokens stand."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="first")
    characters = sorted(
        {*"".join(WORDS).replace("\n", ""), *"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ<>|_[]/\n"}
    )
    trainer = trainers.UnigramTrainer(
        vocab_size=260,
        special_tokens=["<unk>", *specials],
        unk_token="<unk>",
        initial_alphabet=characters,
        show_progress=False,
    )
    tokenizer.train_from_iterator(WORDS, trainer)
    return _finish(tokenizer, start)


def llama3() -> tuple[Tokenizer, str, dict[str, str]]:
    """In the style of Llama 3."""
    names = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
    tokens = {"bos_token": names[0], "eos_token": names[1]}
    return byte_level(names, start=names[0]), LLAMA3, tokens


def qwen3() -> tuple[Tokenizer, str, dict[str, str]]:
    """In the style of Qwen 3: no start token, thoughts, and added tokens that are no special ones."""
    more = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
    tokenizer = byte_level(("<|endoftext|>", "<|im_start|>", "<|im_end|>"), more)
    return tokenizer, QWEN3, {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}


def qwen2() -> tuple[Tokenizer, str, dict[str, str]]:
    """In the style of Qwen 2.5, with a system prompt of the template's own."""
    return qwen3()[0], QWEN2, qwen3()[2]


def gemma() -> tuple[Tokenizer, str, dict[str, str]]:
    """In the style of Gemma, over a Unigram vocabulary."""
    names = ("<bos>", "<eos>", "<pad>", "<start_of_turn>", "<end_of_turn>")
    return unigram(names, "<bos>"), GEMMA, {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}


def mistral() -> tuple[Tokenizer, str, dict[str, str]]:
    """In the style of Mistral, over BPE in the manner of SentencePiece."""
    return metaspace_bpe(("<s>", "</s>"), "<s>"), MISTRAL, {"bos_token": "<s>", "eos_token": "</s>"}


STYLES: dict[str, Callable[[], tuple[Tokenizer, str, dict[str, str]]]] = {
    "llama3": llama3,
    "qwen3": qwen3,
    "qwen2": qwen2,
    "gemma": gemma,
    "mistral": mistral,
}


def write(folder: Path, tokenizer: Tokenizer, template: str | None, tokens: dict[str, Any]) -> Path:
    """A tokenizer's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **tokens})
    )
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return folder
