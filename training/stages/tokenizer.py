"""Tokenizer: a byte-level BPE trained on the training split, or an imported one, as a folder with its chat template."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from tokenizers import Tokenizer

from training.data.conversations.chat_template import write_templates
from training.data.conversations.foreign_folder import publish_tokenizer
from training.data.text.documents import Split
from training.data.tokens.byte_bpe import (
    TOKENIZER_FILE,
    encode_texts,
    frequencies,
    load_plain,
    pre_tokenizer,
    token_bytes,
    train_bpe,
)
from training.data.tokens.tokenizer_sample import MOST_BYTES, sample_of
from training.job.context import StageContext
from training.specs.base import canonical_json
from training.specs.job import StageResult
from training.specs.tokenizer import END_OF_TEXT, PAD, SPECIAL_TOKENS, TokenizerSection
from training.store.store import file_entry

Section = TokenizerSection
_MEASURED_BYTES = 2 * 2**20
_SAMPLES = 8


def run(context: StageContext[TokenizerSection]) -> StageResult:
    """Train or import the tokenizer, save it, and report how it splits text."""
    section = context.section
    if section.origin is not None:
        return publish_tokenizer(context)
    context.events.phase("train the tokenizer")
    split = Split(context.input("corpus").folder / "train")
    texts = sample_of(split, _sample_bytes(context, split), section.weights)
    cut = pre_tokenizer(section.pre_tokenizer, section.digits)
    tokenizer = train_bpe(texts, section.vocabulary, section.min_frequency, cut)
    path = context.out / TOKENIZER_FILE
    _save(tokenizer, path.parent)

    context.events.phase("report")
    plain = load_plain(path)
    sample = [text for batch in split.texts(_MEASURED_BYTES) for text in batch]
    counts = frequencies(encode_texts(plain, sample), section.vocabulary)
    tokens, size = int(counts.sum()), sum(len(text.encode()) for text in sample)
    metrics = {"vocabulary": float(section.vocabulary), "bytes_per_token_training": size / max(tokens, 1)}
    _plot(context.report / "tokens.png", token_bytes(plain), counts)
    _write_samples(context.report / "samples.json", plain, sample)
    _write_card(context.report / "card.md", plain, counts, metrics)
    return StageResult(
        metrics=metrics, headline="bytes_per_token_training", facts={"tokenizer": file_entry(path).sha256}
    )


def _sample_bytes(context: StageContext[TokenizerSection], split: Split) -> int:
    """How much text the tokenizer is trained on, in bytes."""
    wanted = context.section.sample_megabytes * 10**6
    if wanted <= MOST_BYTES:
        return wanted
    available = int(split.table(["bytes"])["bytes"].to_numpy().sum())
    if min(wanted, available) > MOST_BYTES:
        context.events.log(
            f"tokenizer.sample_megabytes: {MOST_BYTES // 10**6:,} MB are taken and not {wanted // 10**6:,}: of more, "
            "tokenizers could count a pair beyond 32 bits"
        )
    return MOST_BYTES


def _save(tokenizer: Tokenizer, folder: Path) -> None:
    """Write the folder that `AutoTokenizer.from_pretrained` reads.

    It is not written by transformers, so that no version of transformers decides its bytes.
    """
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))

    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END_OF_TEXT,
        "pad_token": PAD,
        "clean_up_tokenization_spaces": False,
        "additional_special_tokens": [token for token in SPECIAL_TOKENS if token not in (END_OF_TEXT, PAD)],
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    write_templates(folder)


def _plot(path: Path, sizes: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]) -> None:
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    ordinary = sizes[len(SPECIAL_TOKENS) :]
    left.hist(ordinary, bins=np.arange(1, min(int(ordinary.max()), 24) + 2) - 0.5, color="#4477aa")
    left.set(xlabel="bytes per token", ylabel="tokens", title="Token length")

    ranked = np.sort(counts)[::-1]
    right.loglog(np.arange(1, len(ranked) + 1), np.maximum(ranked, 0.5), color="#aa3377")
    right.set(xlabel="rank", ylabel="occurrences", title="Token frequency (training sample)")
    figure.savefig(path, dpi=80)


def _write_samples(path: Path, tokenizer: Tokenizer, texts: list[str]) -> None:
    rows = []
    for text in texts[:_SAMPLES]:
        excerpt = text[:160]
        ids = tokenizer.encode(excerpt, add_special_tokens=False).ids
        rows.append(
            {
                "text": excerpt,
                "tokens": len(ids),
                "bytes_per_token": round(len(excerpt.encode()) / len(ids), 2),
                "split": "·".join(tokenizer.decode([index]) for index in ids),
            }
        )
    path.write_text(canonical_json(rows), encoding="utf-8")


def _write_card(path: Path, tokenizer: Tokenizer, counts: npt.NDArray[np.int64], metrics: dict[str, float]) -> None:
    longest = np.argsort(-token_bytes(tokenizer)[len(SPECIAL_TOKENS) :], kind="stable")[:12] + len(SPECIAL_TOKENS)
    names = ", ".join(f"`{tokenizer.decode([int(index)])!r}`" for index in longest)

    path.write_text(
        f"Byte-level BPE with {len(counts)} tokens: {len(SPECIAL_TOKENS)} special tokens, 256 bytes, "
        f"{len(counts) - len(SPECIAL_TOKENS) - 256} merges.\n\n"
        f"- {metrics['bytes_per_token_training']:.2f} bytes per token of training text\n"
        f"- {int((counts == 0).sum())} tokens do not occur in the sample of {int(counts.sum()):,} tokens\n"
        f"- special tokens: {', '.join(f'`{token}`' for token in SPECIAL_TOKENS)}\n"
        f"- longest tokens: {names}\n",
        encoding="utf-8",
    )
