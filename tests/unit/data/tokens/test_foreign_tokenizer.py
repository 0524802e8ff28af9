"""Tokenizers of other people come in with every id as it was, in one normalised form."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers

from tests.foreign import (
    CHATML,
    GPT4O_SPLIT,
    LLAMA3_SPLIT,
    byte_level,
    edit,
    files_of,
    save_tokenizer,
    sentencepiece_bpe,
    unigram,
)
from training.data.conversations.foreign_folder import require_same_ids
from training.data.tokens.byte_bpe import load_plain, rows_of, token_bytes
from training.data.tokens.foreign_tokenizer import read_foreign
from training.data.tokens.tokenizer_kinds import repeats_a_repetition
from training.errors import InputRefused
from training.tokenizer_folder import load_tokenizer

KINDS = {
    "byte level": lambda: byte_level(),
    "llama 3": lambda: byte_level(split=LLAMA3_SPLIT),
    "gpt-4o": lambda: byte_level(split=GPT4O_SPLIT),
    "sentencepiece bpe": sentencepiece_bpe,
    "unigram": unigram,
}
TEXTS = (
    "The path of the file is 12345 long.",
    "  two  spaces\tand\n\n\nlines don't I'LL",
    "na\u00efve \u65e5\u672c\u8a9e \U0001f469\u200d\U0001f680",
    "",
)
ENDS = {"sentencepiece bpe": "</s>", "unigram": "</s>"}


def refusal(folder: Path) -> str:
    with pytest.raises(InputRefused) as caught:
        read_foreign(files_of(folder))
    return str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_keeps_its_ids_here_and_in_transformers(kind: str, tmp_path: Path) -> None:
    tokenizer = KINDS[kind]()
    tokenizer.add_tokens([AddedToken("<think>", normalized=False)])
    end = ENDS.get(kind, "<|im_end|>")
    folder = save_tokenizer(tokenizer, tmp_path / "origin", eos_token=end, tokenizer_class="LlamaTokenizerFast")
    expected = [tokenizer.encode(text, add_special_tokens=False).ids for text in (*TEXTS, "a <think> b")]

    foreign = read_foreign(files_of(folder))
    foreign.save(tmp_path / "written")

    require_same_ids(tokenizer, tmp_path / "written", (*TEXTS, "a <think> b"))
    loaded = load_tokenizer(tmp_path / "written")
    written = [loaded(text, add_special_tokens=False)["input_ids"] for text in (*TEXTS, "a <think> b")]
    assert written == expected
    assert loaded.eos_token == end and loaded.pad_token is not None
    known = "The path of the file"  # a small Unigram has no token for every letter
    assert loaded.decode(loaded(known, add_special_tokens=False)["input_ids"]).strip() == known


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_tokenizer_gives_the_same_bytes(kind: str, tmp_path: Path) -> None:
    folder = save_tokenizer(KINDS[kind](), tmp_path / "origin", eos_token=ENDS.get(kind, "<|im_end|>"))
    for number in range(2):
        read_foreign(files_of(folder)).save(tmp_path / str(number))
    assert (tmp_path / "0/tokenizer.json").read_bytes() == (tmp_path / "1/tokenizer.json").read_bytes()
    # What the library reads and writes again is what stands there.
    assert load_plain(tmp_path / "0/tokenizer.json").get_vocab_size() == KINDS[kind]().get_vocab_size()


def test_a_name_of_a_special_token_in_a_text_stays_text(tmp_path: Path) -> None:
    folder = save_tokenizer(byte_level(), tmp_path / "origin", eos_token="<|im_end|>")
    read_foreign(files_of(folder)).save(tmp_path / "written")
    plain = load_plain(tmp_path / "written" / "tokenizer.json")
    assert 2 not in plain.encode("<|im_end|>", add_special_tokens=False).ids


def test_truncation_and_padding_of_the_file_are_left_out(tmp_path: Path) -> None:
    tokenizer = byte_level()
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=16)
    folder = save_tokenizer(tokenizer, tmp_path, eos_token="<|im_end|>")
    assert len(read_foreign(files_of(folder)).tokenizer.encode("one two three four five six").ids) > 4


def test_special_tokens_are_found_wherever_they_are_named(tmp_path: Path) -> None:
    folder = save_tokenizer(byte_level(), tmp_path, eos_token={"content": "<|im_end|>", "lstrip": False})
    (folder / "special_tokens_map.json").write_text(json.dumps({"bos_token": "<|im_start|>", "eos_token": "x"}))
    foreign = read_foreign(files_of(folder))
    assert foreign.special["eos_token"] == "<|im_end|>" and foreign.special["bos_token"] == "<|im_start|>"


def test_a_special_token_that_the_vocabulary_lacks_is_left_out_and_said(tmp_path: Path) -> None:
    folder = save_tokenizer(byte_level(), tmp_path, eos_token="<|im_end|>", pad_token="<mine>")
    foreign = read_foreign(files_of(folder))
    assert foreign.special["pad_token"] == "<|im_end|>"
    assert "the special token <mine> is left out: the vocabulary does not hold it" in foreign.notes
    assert foreign.rows == rows_of(byte_level())


def test_a_token_kept_for_padding_is_taken_before_the_end(tmp_path: Path) -> None:
    tokenizer = byte_level(("<|endoftext|>", "<|im_end|>", "<|finetune_right_pad_id|>"))
    folder = save_tokenizer(tokenizer, tmp_path, eos_token="<|im_end|>")
    assert read_foreign(files_of(folder)).special["pad_token"] == "<|finetune_right_pad_id|>"


def test_the_end_of_a_text_comes_from_the_generation_settings_where_the_tokenizer_has_none(tmp_path: Path) -> None:
    folder = save_tokenizer(byte_level(), tmp_path)
    assert "names no end of a text" in refusal(folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 0]}))
    assert read_foreign(files_of(folder)).special["eos_token"] == "<|im_end|>"


def test_tokens_of_the_recipe_are_added_once(tmp_path: Path) -> None:
    folder = save_tokenizer(byte_level(), tmp_path, eos_token="<|im_end|>")
    size = byte_level().get_vocab_size()
    foreign = read_foreign(files_of(folder), ("<|tool|>", "<|im_start|>"))
    assert foreign.added == {"<|tool|>": size}
    assert foreign.tokenizer.encode("a<|tool|>").ids[-1] == size
    assert "the special token <|im_start|> is there already" in foreign.notes


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (CHATML, CHATML),
        ([{"name": "default", "template": CHATML}, {"name": "tool_use", "template": "x"}], CHATML),
        (None, None),
    ],
)
def test_the_template_is_read_from_the_configuration(tmp_path: Path, written: object, expected: str | None) -> None:
    folder = save_tokenizer(byte_level(), tmp_path, eos_token="<|im_end|>", chat_template=written)
    assert read_foreign(files_of(folder)).template == expected
    (folder / "chat_template.jinja").write_text("of the file")
    assert read_foreign(files_of(folder)).template == "of the file"


def test_code_is_left_out_beside_a_tokenizer_and_refused_without_one(tmp_path: Path) -> None:
    folder = save_tokenizer(
        byte_level(), tmp_path, eos_token="<|im_end|>", auto_map={"AutoTokenizer": ["evil.T", None]}
    )
    assert any("no code of a folder is run" in note for note in read_foreign(files_of(folder)).notes)
    (folder / "tokenizer.json").unlink()
    assert "needs code of its own" in refusal(folder)


def test_a_slow_tokenizer_alone_says_how_to_convert_it(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer"}))
    message = refusal(tmp_path)
    assert "holds tokenizer.model and no tokenizer.json" in message
    assert "AutoTokenizer.from_pretrained(folder).save_pretrained(folder)" in message


def test_a_vocabulary_with_merges_is_converted(tmp_path: Path) -> None:
    tokenizer = byte_level()
    tokenizer.model.save(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|endoftext|>"})
    )
    foreign = read_foreign(files_of(tmp_path))
    assert "converted from merges.txt, vocab.json" in foreign.notes
    for text in TEXTS:
        assert foreign.tokenizer.encode(text).ids == tokenizer.encode(text).ids


def test_a_folder_without_a_tokenizer_says_so(tmp_path: Path) -> None:
    assert "holds no tokenizer" in refusal(tmp_path)


def test_kinds_that_are_not_read_are_refused(tmp_path: Path) -> None:
    words = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    assert "it is a WordPiece" in refusal(save_tokenizer(words, tmp_path, eos_token="a"))

    slow = byte_level()
    slow.pre_tokenizer = pre_tokenizers.Split(Regex("(a+)+$"), behavior="isolated")
    assert "can take any time on the wrong text" in refusal(save_tokenizer(slow, tmp_path, eos_token="<|im_end|>"))


@pytest.mark.parametrize("content", ["", "{", "[]", '{"model": {}}', '{"version": "1.0", "model": {"type": "BPE"}}'])
def test_a_damaged_file_is_one_clear_error(tmp_path: Path, content: str) -> None:
    save_tokenizer(byte_level(), tmp_path, eos_token="<|im_end|>")
    (tmp_path / "tokenizer.json").write_text(content)
    assert f"{tmp_path / 'tokenizer.json'} cannot be imported" in refusal(tmp_path)


@pytest.mark.parametrize("pattern", [LLAMA3_SPLIT, GPT4O_SPLIT, r"\p{N}{1,3}(?=(?:\d{3})*$)", r"[(+)]+", r"\(a+\)+"])
def test_patterns_in_use_repeat_no_repetition(pattern: str) -> None:
    assert not repeats_a_repetition(pattern)


@pytest.mark.parametrize("pattern", ["(a+)+", "(?:a*b?)*", "((a|b)+c)+", "(x{2,})*", "(a+){3,}"])
def test_a_repeated_repetition_is_seen(pattern: str) -> None:
    assert repeats_a_repetition(pattern)


def test_bytes_of_tokens_are_those_of_their_texts() -> None:
    tokenizer = sentencepiece_bpe()
    sizes = token_bytes(tokenizer)
    for token, size in (("\u2581the", 4), ("<0x0A>", 1), ("file", 4), ("</s>", 4)):
        assert sizes[tokenizer.token_to_id(token)] == size
    assert len(sizes) == rows_of(tokenizer)


def test_a_tokenizer_folder_with_code_or_another_class_is_not_loaded(tmp_path: Path) -> None:
    folder = save_tokenizer(byte_level(), tmp_path / "origin", eos_token="<|im_end|>")
    read_foreign(files_of(folder)).save(tmp_path / "written")
    edit(tmp_path / "written" / "tokenizer_config.json", tokenizer_class="BertTokenizer")
    with pytest.raises(InputRefused, match="tokenizer_class must be"):
        load_tokenizer(tmp_path / "written")
