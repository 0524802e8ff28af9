"""Negative controls: what each one gets wrong, and the gate that is meant to refuse it."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from benchmarks.proof.world import World
from pipeline.graph import KINDS
from training.data.tables import CONVERSATION_SCHEMA, PAIR_SCHEMA, read_rows, write_table
from training.data.tokens.byte_bpe import TOKENIZER_FILE, encode_texts, load_plain, train_bpe
from training.data.tokens.shards import FOLDER, TokenShards, TokenWriter
from training.specs.artifacts import Certificate, Manifest
from training.specs.corpus import GENERAL

MODELS = tuple(name for name, kind in KINDS.items() if kind.is_model)
_DOMAIN_DOCUMENTS = 10  # the gate of adapter_data asks for so many
_RANDOM_WEIGHTS = """
import sys
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, set_seed
set_seed(1)
model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(sys.argv[1]))
model.generation_config = GenerationConfig.from_pretrained(sys.argv[1])
model.save_pretrained(sys.argv[1])
"""


@dataclass(frozen=True)
class Control:
    """One bad artifact, made on purpose.

    Attributes:
        asset: Whose gates must refuse it.
        meant: Gates of which at least one must be among those that refuse.
        make: Makes it in a world of its own.
    """

    name: str
    asset: str
    meant: tuple[str, ...]
    make: Callable[[World], Manifest]


@dataclass(frozen=True)
class Caught:
    """What the gates said of a control."""

    control: Control
    certificate: Certificate

    @property
    def refused_by(self) -> list[str]:
        """Names of the gates that refused it."""
        return [verdict.name for verdict in self.certificate.verdicts if not verdict.passed]

    @property
    def as_meant(self) -> bool:
        """Whether it was refused, and by a gate that is meant for it."""
        return not self.certificate.passed and bool(set(self.control.meant) & set(self.refused_by))


def run(control: Control, world: World) -> Caught:
    """Make a control and have it judged."""
    return Caught(control, world.judge(control.make(world)))


def random_weights(asset: str) -> Callable[[World], Manifest]:
    """The architecture of a model, never trained."""

    def edit(folder: Path) -> None:
        subprocess.run([sys.executable, "-c", _RANDOM_WEIGHTS, str(folder / "model")], check=True, capture_output=True)

    return lambda world: world.impostor(asset, edit)


def base_as_sft(world: World) -> Manifest:
    """The base model's own files, probe included, under the name of the SFT model."""
    base = world.files("base_model")

    def edit(folder: Path) -> None:
        shutil.rmtree(folder / "model")
        shutil.copytree(base / "model", folder / "model")
        shutil.copyfile(base / "probe.json", folder / "probe.json")

    return world.impostor("sft_model", edit)


def shuffled_answers(world: World) -> Manifest:
    """An SFT model whose questions were given other questions' answers."""

    def edit(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        turns = [json.loads(row["messages"]) for row in rows]
        answers = [pair[-1] for pair in turns]
        random.Random(0).shuffle(answers)
        return [
            row | {"messages": json.dumps([*pair[:-1], answer])}
            for row, pair, answer in zip(rows, turns, answers, strict=True)
        ]

    return _trained_on(world, "sft_model", "instruction_data", _rows(CONVERSATION_SCHEMA, edit))


def swapped_pairs(world: World) -> Manifest:
    """A DPO model that was taught to prefer the wrong answers."""

    def edit(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [row | {"chosen": row["rejected"], "rejected": row["chosen"]} for row in rows]

    return _trained_on(world, "dpo_model", "preference_data", _rows(PAIR_SCHEMA, edit))


def other_domain(world: World) -> Manifest:
    """An adapter for other packages than the domain's: the largest of the general training text."""
    train = list(read_rows(world.files("corpus") / "train", ["id", "text", "path", "bytes", "domain"]))
    packages: dict[str, list[dict[str, Any]]] = {}
    for row in train:
        if row["domain"] == GENERAL and (name := str(Path(row["path"]).parent)) != ".":
            packages.setdefault(name, []).append(row)

    # The largest packages first, until they hold as many documents as the domain's gate asks for.
    chosen: dict[str, str] = {}
    for rows in sorted(packages.values(), key=lambda rows: -sum(row["bytes"] for row in rows)):
        if len(chosen) < _DOMAIN_DOCUMENTS:
            chosen |= {row["id"]: row["text"] for row in rows}

    conversations = [
        row | {"domain": world.loaded.recipe.adapter_data.domain}
        for row in read_rows(world.files("instruction_data") / "train.parquet")
        if row["domain"] == GENERAL
    ]

    def edit(folder: Path) -> None:
        documents = pq.ParquetFile(folder / "documents.parquet").read()
        rows = [
            documents.slice(0, 1).to_pylist()[0] | {"id": key, "text": text, "bytes": len(text.encode())}
            for key, text in chosen.items()
        ]
        write_table(folder / "documents.parquet", rows, documents.schema)

        count = pq.read_metadata(folder / "train.parquet").num_rows
        write_table(folder / "train.parquet", conversations[:count], CONVERSATION_SCHEMA)

    return _trained_on(world, "lora_model", "adapter_data", edit)


def foreign_tokenizer(world: World) -> Manifest:
    """A tokenizer of another language: of the same texts with every letter moved by 13."""
    moved = str.maketrans(
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ", "nopqrstuvwxyzabcdefghijklmNOPQRSTUVWXYZABCDEFGHIJKLM"
    )
    texts = [row["text"].translate(moved) for row in read_rows(world.files("corpus") / "train", ["text"])]
    section = world.loaded.recipe.tokenizer

    def edit(folder: Path) -> None:
        train_bpe(texts, section.vocabulary, section.min_frequency).save(str(folder / TOKENIZER_FILE))

    return world.impostor("tokenizer", edit)


def leaked_heldout(world: World) -> Manifest:
    """Shards that also hold every held-out document, twice."""
    plain = load_plain(world.files("tokenizer") / TOKENIZER_FILE)
    rows = list(read_rows(world.files("corpus") / "heldout", ["id", "text"]))
    tokens = list(encode_texts(plain, [row["text"] for row in rows]))
    end = plain.encode("<|endoftext|>", add_special_tokens=False).ids

    def edit(folder: Path) -> None:
        shards = TokenShards(folder)
        documents = [np.array(shards.document(index)) for index in range(len(shards.lengths))]
        ids, source, meta = shards.ids.copy(), shards.source.copy(), shards.meta

        # Copied before: the arrays are views of the files that go now.
        shutil.rmtree(folder / FOLDER)
        leaked = [
            (np.append(document, end), bytes.fromhex(row["id"])) for document, row in zip(tokens, rows, strict=True)
        ] * 2
        with TokenWriter(folder, meta.vocabulary, max(meta.shards)) as writer:
            for document in [*documents, *(document for document, _ in leaked)]:
                writer.add(document)
            more = np.stack([np.frombuffer(digest, np.uint8) for _, digest in leaked])
            writer.finish(
                np.append(source, np.zeros(len(leaked), np.int32)),
                np.concatenate([ids, more]),
                meta.sources,
                meta.weights,
                meta.tokenizer,
            )

    return world.impostor("packed_shards", edit)


def _rows(schema: Any, change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]) -> Callable[[Path], None]:
    """An edit of `train.parquet`."""

    def edit(folder: Path) -> None:
        rows = list(read_rows(folder / "train.parquet"))
        write_table(folder / "train.parquet", change(rows), schema)

    return edit


def _trained_on(world: World, model: str, data: str, edit: Callable[[Path], None]) -> Manifest:
    """Train a model on altered data. The data must pass their own gates, or the model's gates would prove nothing."""
    altered = world.judge(world.impostor(data, edit))
    assert altered.passed, f"{data}: {[verdict.reason for verdict in altered.verdicts if not verdict.passed]}"
    return world.train(model)


CONTROLS = (
    *(
        Control(
            f"{asset} with random weights",
            asset,
            ("loss_drop", "preference_margin", "domain_gain", "refusal_rate"),
            random_weights(asset),
        )
        for asset in MODELS
    ),
    Control("a base model posing as SFT", "sft_model", ("loss_drop", "refusal_rate"), base_as_sft),
    Control(
        "an SFT model trained on shuffled answers",
        "sft_model",
        ("choice_accuracy_dcpmi", "refusal_rate", "over_refusal_rate"),
        shuffled_answers,
    ),
    Control(
        "a DPO model trained on swapped pairs",
        "dpo_model",
        ("preference_accuracy", "preference_margin", "refusal_rate", "benign_answer_rate"),
        swapped_pairs,
    ),
    Control("an adapter for another domain", "lora_model", ("domain_gain",), other_domain),
    Control("a tokenizer from another corpus", "tokenizer", ("bytes_per_token",), foreign_tokenizer),
    Control("shards with duplicated held-out text", "packed_shards", ("contaminated_documents",), leaked_heldout),
)
