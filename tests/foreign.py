"""Small models and tokenizers of the kinds that come in from outside, built at random and saved as others save them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from training.data.sources.origins import OriginFiles, origin_files
from training.specs.imports import Origin

# Case TINY of many trackers: weights that are large enough for a difference to show.
TINY: dict[str, Any] = {
    "model_type": "llama", "vocab_size": 200, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.2, "bos_token_id": 1,
    "eos_token_id": 2, "pad_token_id": 0, "max_position_embeddings": 64,
}  # fmt: skip
TEXTS = ["The path of the file is read by the reader of the files.", "def f(x):\n    return x ** 2\n"] * 20
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' "
    "+ '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT4O_SPLIT = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def tiny_model(seed: int = 0, **fields: Any) -> PreTrainedModel:
    """TINY, or what the fields make of it, with seeded weights."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**TINY | fields), dtype=torch.float32)
    assert isinstance(model, PreTrainedModel)
    return model.eval()


def saved(model: PreTrainedModel, folder: Path, **save: Any) -> Path:
    """The model's folder, as `save_pretrained` writes it."""
    model.save_pretrained(folder, **save)
    return folder


def files_of(folder: Path, gguf: str | None = None) -> OriginFiles:
    """The files of a folder, as an import sees them."""
    return origin_files(Origin(name=str(folder), gguf=gguf))


def edit(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file; None takes one out."""
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def byte_level(
    special: Sequence[str] = ("<|endoftext|>", "<|im_start|>", "<|im_end|>"), split: str | None = None, size: int = 300
) -> Tokenizer:
    """A byte-level BPE that cuts words by GPT-2's rule or another one."""
    tokenizer = Tokenizer(models.BPE())
    rule: pre_tokenizers.PreTokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if split is not None:
        rule = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(split), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    tokenizer.pre_tokenizer, tokenizer.decoder = rule, decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def sentencepiece_bpe() -> Tokenizer:
    """A BPE as Llama 2 and Mistral have it: a space before the text, bytes for what is unknown, a start token."""
    names = ["<unk>", "<s>", "</s>", *(f"<0x{number:02X}>" for number in range(256))]
    letters = sorted({letter for text in TEXTS for letter in text.replace(" ", "\u2581")} | {"\u2581"})
    words = ["th", "the", "\u2581the", "fi", "le", "file", "\u2581file"]
    merges = [("t", "h"), ("th", "e"), ("\u2581", "the"), ("f", "i"), ("l", "e"), ("fi", "le"), ("\u2581", "file")]
    vocabulary = {name: number for number, name in enumerate(dict.fromkeys([*names, *letters, *words]))}
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names[:3]])
    return tokenizer


def unigram() -> Tokenizer:
    """A SentencePiece Unigram."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Replace(Regex(" {2,}"), " ")
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=80, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path, **config: Any) -> Path:
    """The tokenizer's files in a folder, as others write them."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder
