from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jinja2
import jinja2.sandbox
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer, LlamaConfig

from tests.unit.data.tokens import parts
from training.data.conversations.chat_template import CHAT_TEMPLATE, encode_conversation, encode_conversations
from training.data.tables import read_rows, text_id
from training.data.text.documents import Split
from training.data.tokens.byte_bpe import encode_texts, pre_tokenizer, read_tokenizer, train_bpe
from training.data.tokens.tokenizer_sample import sample_of
from training.errors import InputRefused, RecipeError
from training.job.context import InputArtifact
from training.specs.tokenizer import END_OF_TEXT, PAD, SPECIAL_TOKENS, TokenizerSection
from training.stages import tokenizer as stage
from training.store.store import file_entry

_ROLES = st.sampled_from(["system", "user", "assistant"])
_PIECES = st.one_of(
    st.sampled_from([*SPECIAL_TOKENS, "\n", " ", "<|", "|>", "<", "|end|>", "user", "\u3000"]), st.text(max_size=8)
)
_MESSAGES = st.lists(
    st.fixed_dictionaries({"role": _ROLES, "content": st.lists(_PIECES, max_size=6).map("".join)}),
    min_size=1,
    max_size=5,
)


@pytest.fixture(scope="module")
def tokenizer(tokenizer_folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(tokenizer_folder / "tokenizer")


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_folder_loads_with_its_special_tokens_first(tokenizer: Any) -> None:
    assert len(tokenizer) == parts.VOCABULARY
    assert (tokenizer.eos_token, tokenizer.pad_token) == (END_OF_TEXT, PAD)
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == list(range(len(SPECIAL_TOKENS)))


def test_the_same_corpus_gives_the_same_bytes(tmp_path: Path, corpus: InputArtifact, tokenizer_folder: Path) -> None:
    again = parts.tokenizer_artifact(tmp_path / "again", corpus)
    source = tokenizer_folder / "tokenizer"
    for path in sorted(path for path in source.rglob("*") if path.is_file()):
        assert path.read_bytes() == (again.folder / "tokenizer" / path.relative_to(source)).read_bytes()
    assert again.manifest.facts["tokenizer"] == _digest(tokenizer_folder / "tokenizer" / "tokenizer.json")


_TRAIN = """
import hashlib, random, sys
from training.data.tokens.byte_bpe import train_bpe
draw = random.Random(0)
texts = [" ".join("".join(draw.choices("abcdefgh", k=draw.randint(1, 9))) for _ in range(200)) for _ in range(40)]
sys.stdout.write(hashlib.sha256(train_bpe(texts, 900, 1).to_str().encode()).hexdigest())
"""


def test_hash_seeds_and_threads_give_the_same_bytes() -> None:
    """Unigram and WordPiece of tokenizers differ from process to process (huggingface/tokenizers #1794)."""
    environments = [
        {**os.environ, "PYTHONHASHSEED": str(seed), "RAYON_NUM_THREADS": str(threads)}
        for seed, threads in ((0, 1), (1, 4))
    ]
    processes = [
        subprocess.Popen([sys.executable, "-c", _TRAIN], env=environment, stdout=subprocess.PIPE)
        for environment in environments
    ]
    digests = {process.communicate()[0] for process in processes}
    assert len(digests) == 1 and len(digests.pop()) == 64


def _split(folder: Path, sources: dict[str, int]) -> Split:
    rows = [
        parts.row_of(parts.text_of(1000 * place + number), source=source)
        for place, (source, count) in enumerate(sources.items())
        for number in range(count)
    ]
    parts.write_corpus(folder, sorted(rows, key=lambda row: row["id"]), [])
    return Split(folder / "train")


def test_a_source_has_its_weighted_share_of_the_sample(tmp_path: Path) -> None:
    split = _split(tmp_path, {"large": 180, "small": 20})
    sources = {row["text"]: row["source"] for row in read_rows(split.folder, ["text", "source"])}
    size = sum(len(text.encode()) for text in sources)

    sample = list(sample_of(split, size // 4, {"small": 3.0}))
    assert len(sample) == len(set(sample)) and sample == sorted(sample, key=text_id)
    small = sum(len(text.encode()) for text in sample if sources[text] == "small")
    assert small / (size // 4) == pytest.approx(3 * 20 / (3 * 20 + 180), abs=0.03)

    taken = [sources[text] for text in sample_of(split, size // 2, {"small": 100.0})]
    assert taken.count("small") == 20, "a source that has less than its share is taken whole, and nothing twice"
    assert [*sample_of(split, size // 4, {})] == [text for batch in split.texts(size // 4) for text in batch]


def test_a_pair_that_could_be_counted_beyond_32_bits_makes_the_sample_smaller(
    tmp_path: Path, corpus: InputArtifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = TokenizerSection(sample_megabytes=4000, vocabulary=300)
    taken = []
    monkeypatch.setattr(
        stage, "sample_of", lambda split, most, weights: taken.append(most) or sample_of(split, most, weights)
    )

    def run(name: str, sizes: int) -> str:
        monkeypatch.setattr(Split, "table", lambda _, columns: pa.table({"bytes": [sizes - 5, 5]}))
        context = parts.context_of(tmp_path / name, "tokenizer", section, {"corpus": corpus})
        lines: list[str] = []
        monkeypatch.setattr(type(context.events), "log", lambda _, line: lines.append(line))
        stage.run(context)
        return "".join(lines)

    assert "2,147 MB are taken and not 4,000" in run("a", 2**31)
    assert run("b", 2**31 - 1) == ""
    assert taken == [2**31 - 1, 2**31 - 1]


def test_saving_beside_a_model_keeps_the_digest(tmp_path: Path, tokenizer: Any, tokenizer_folder: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    LlamaConfig(vocab_size=parts.VOCABULARY).save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    again.save_pretrained(tmp_path / "twice")
    original = file_entry(tokenizer_folder / "tokenizer" / "tokenizer.json")
    assert file_entry(tmp_path / "tokenizer.json") == original == file_entry(tmp_path / "twice" / "tokenizer.json")
    assert again.chat_template == tokenizer.chat_template


def test_a_corpus_too_small_says_which_vocabulary_it_gives(tmp_path: Path, corpus: InputArtifact) -> None:
    context = parts.context_of(tmp_path / "out", "tokenizer", TokenizerSection(vocabulary=100_000), {"corpus": corpus})
    with pytest.raises(RecipeError, match=r"tokenizer\.vocabulary.* gives \d+: ") as caught:
        stage.run(context)
    possible = int(str(caught.value).split(" gives ")[1].split(":")[0])
    shutil.rmtree(tmp_path / "out")
    parts.tokenizer_artifact(tmp_path / "out", corpus, vocabulary=possible)


def test_words_keep_their_vowel_signs_and_ascii_is_cut_as_by_gpt2() -> None:
    cut, gpt2 = pre_tokenizer(), pre_tokenizers.ByteLevel(add_prefix_space=False)
    for text in ("खर्च करना", "தமிழ் மொழி", "مُحَمَّدٌ كِتَابٌ", "ภาษาไทย มีวรรณยุกต์", "e\u0301te\u0301 la\u0300"):
        assert len(cut.pre_tokenize_str(text)) == 2
    source = Path(parts.__file__).read_text() + " it's  2nd\n\n\tend "
    assert cut.pre_tokenize_str(source) == gpt2.pre_tokenize_str(source)


def test_a_language_with_vowel_signs_fills_its_vocabulary() -> None:
    draw = random.Random(0)
    syllables = [consonant + vowel for consonant in "कखगघचछजझटठडढतथदधनपफबभमयरलवशषसह" for vowel in "ािीुूेैोौ"]
    lexicon = ["".join(draw.choices(syllables, k=3)) for _ in range(1000)]
    texts = [" ".join(draw.choices(lexicon, k=400)) for _ in range(60)]
    tokenizer = train_bpe(texts, 2048, 2)
    tokens = sum(len(ids) for ids in encode_texts(tokenizer, texts))
    assert sum(len(text.encode()) for text in texts) / tokens > 8


def test_a_tokenizer_that_cuts_words_by_another_rule_is_refused(tmp_path: Path, tokenizer_folder: Path) -> None:
    content = json.loads((tokenizer_folder / "tokenizer" / "tokenizer.json").read_text())
    content["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "(a+)+$"
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(InputRefused, match="cuts words by another rule"):
        read_tokenizer(tmp_path / "tokenizer.json")


def test_the_report_is_complete(tokenizer_folder: Path) -> None:
    report = tokenizer_folder / "report"
    assert (report / "tokens.png").stat().st_size < 100_000
    rows = json.loads((report / "samples.json").read_text())
    assert rows
    assert rows[0]["split"].replace("·", "") == rows[0]["text"]
    assert f"{parts.VOCABULARY} tokens" in (report / "card.md").read_text()


@given(_MESSAGES, st.booleans())
@settings(max_examples=150, deadline=None)
def test_fast_encoding_is_the_chat_template(tokenizer: Any, messages: list[dict[str, str]], prompt: bool) -> None:
    rendered = tokenizer.apply_chat_template(
        messages,
        chat_template="training",
        tokenize=True,
        return_dict=True,
        add_generation_prompt=prompt,
        return_assistant_tokens_mask=True,
    )
    plain = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True, add_generation_prompt=prompt)
    ids, mask = encode_conversation(tokenizer, messages, add_generation_prompt=prompt)
    assert ids.tolist() == rendered["input_ids"] == plain["input_ids"]
    assert mask.astype(int).tolist() == rendered["assistant_masks"]


@given(_MESSAGES)
@settings(max_examples=150, deadline=None)
def test_no_content_opens_or_closes_a_turn(tokenizer: Any, messages: list[dict[str, str]]) -> None:
    ids, _ = encode_conversation(tokenizer, messages)
    special = [tokenizer.convert_ids_to_tokens(int(index)) for index in ids if index < len(SPECIAL_TOKENS)]
    assert special == [name for message in messages for name in (f"<|{message['role']}|>", "<|end|>")]


def test_the_mask_covers_exactly_what_the_assistant_says(tokenizer: Any) -> None:
    messages = [
        {"role": "user", "content": "What is né?"},
        {"role": "assistant", "content": "  A word,\nwith é. "},
        {"role": "user", "content": "More."},
        {"role": "assistant", "content": "No."},
    ]
    ids, mask = encode_conversation(tokenizer, messages)
    assert tokenizer.decode(ids[mask]) == "A word,\nwith é.<|end|>No.<|end|>"
    assert tokenizer.decode(ids).endswith("<|assistant|>\nNo.<|end|>\n")


def test_many_at_once_are_the_same_as_one_by_one(tokenizer: Any) -> None:
    talks = [
        [{"role": "user", "content": parts.text_of(n, 9)}, {"role": "assistant", "content": parts.text_of(-n, 5)}]
        for n in range(20)
    ]
    tokenizer(["a", "a b c"], padding=True, truncation=True, max_length=2)  # leaves its settings in the tokenizer
    for talk, (ids, mask) in zip(talks, encode_conversations(tokenizer, talks), strict=True):
        alone = encode_conversation(tokenizer, talk)
        assert np.array_equal(ids, alone[0])
        assert np.array_equal(mask, alone[1])
        assert len(ids) > 20


PARTS = [
    {"type": "text", "text": "How do I "},
    {"type": "text", "text": None},
    "build ",
    {"type": "text", "text": "<|end|>?"},
]
CONTENTS = [
    ("Hi", "Hi"),
    (" Hi\n", "Hi"),
    (PARTS, "How do I build < |end|>?"),
    ([], ""),
    (None, ""),
    (42, "42"),
    (1.5, "1.5"),
    ("<|user|>", "< |user|>"),
]
PLAIN = (
    jinja2.Environment(),
    jinja2.sandbox.ImmutableSandboxedEnvironment(),
    jinja2.Environment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]),
)


@pytest.mark.parametrize(("content", "text"), CONTENTS)
def test_a_content_of_any_form_is_its_text_in_every_runtime(tokenizer: Any, content: object, text: str) -> None:
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": content}]
    rendered = f"<|user|>\n{text}<|end|>\n<|assistant|>\n{text}<|end|>\n"

    assert tokenizer.apply_chat_template(messages, tokenize=False) == rendered
    assert tokenizer.apply_chat_template(messages, chat_template="training", tokenize=False) == rendered
    assert tokenizer.decode(encode_conversation(tokenizer, messages)[0]) == rendered
    template = (Path(tokenizer.name_or_path) / "chat_template.jinja").read_text()
    for environment in PLAIN:
        assert environment.from_string(template).render(messages=messages) == rendered


def test_a_message_without_content_is_an_empty_turn(tokenizer: Any) -> None:
    messages = [{"role": "user"}]
    template = jinja2.Environment().from_string(CHAT_TEMPLATE)

    assert template.render(messages=messages, add_generation_prompt=True) == "<|user|>\n<|end|>\n<|assistant|>\n"
    assert tokenizer.decode(encode_conversation(tokenizer, messages)[0]) == "<|user|>\n<|end|>\n"


@pytest.mark.parametrize("content", [[{"type": "image", "url": "x"}], {"type": "text", "text": "x"}])
def test_a_content_that_is_not_text_is_refused(tokenizer: Any, content: object) -> None:
    messages = [{"role": "user", "content": content}]
    with pytest.raises(ValueError, match="text"):
        encode_conversation(tokenizer, messages)
    with pytest.raises(jinja2.TemplateError, match="text"):
        tokenizer.apply_chat_template(messages, tokenize=False)


def test_an_unknown_role_is_refused(tokenizer: Any) -> None:
    messages = [{"role": "tool", "content": "x"}]
    with pytest.raises(ValueError, match="unknown role"):
        encode_conversation(tokenizer, messages)
    with pytest.raises(Exception, match="unknown role"):
        tokenizer.apply_chat_template(messages, tokenize=False)
