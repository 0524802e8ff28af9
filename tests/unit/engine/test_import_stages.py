"""The stages that import: a tokenizer and a model of a folder become versions that are measured like any other."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tokenizers import Tokenizer

from tests.foreign import CHATML, byte_level, save_tokenizer, saved, sentencepiece_bpe, tiny_model
from tests.ggufs import write_llama
from training.data.conversations.chat_format import ChatFormat
from training.errors import InputRefused, RecipeError, SourceError
from training.evaluation.models import load
from training.evaluation.tokenizers import measure_tokenizer
from training.job.context import InputArtifact, StageContext
from training.job.events import EVENTS_FILE, EventWriter
from training.job.parts import Pool
from training.model_folder import plain_model
from training.specs.artifacts import Manifest
from training.specs.base_model import BaseModelSection
from training.specs.evaluation import EvaluationSection
from training.specs.execution import Execution
from training.specs.imports import TokenizerImport
from training.specs.job import StageResult
from training.specs.tokenizer import TokenizerSection
from training.stages import base_model, evaluate_model, tokenizer
from training.tokenizer_folder import load_tokenizer

HELDOUT = ["The path of the file is read by the reader of the files. " * 6, "def f(x):\n    return x ** 2\n" * 8]


@dataclass
class Bench:
    """Runs stages with contexts of their own, one folder each."""

    root: Path
    count: int = 0

    def run(
        self, stage: Any, section: Any, files: dict[str, Path] | None = None, **inputs: InputArtifact
    ) -> InputArtifact:
        """Run a stage; its artifact."""
        self.count += 1
        asset = stage.__name__.rpartition(".")[2]
        out, work = self.root / f"{self.count}-{asset}", self.root / f"{self.count}-work"
        out.mkdir()
        work.mkdir()
        context = StageContext(
            asset,
            "i" * 64,
            section,
            0,
            inputs,
            files or {},
            out,
            work,
            Execution(),
            EventWriter(work / EVENTS_FILE),
            0,
            1,
        )
        result = stage.run(context)
        assert isinstance(result, StageResult)
        manifest = Manifest(
            asset=asset, version="v1", stage=asset, recipe="unit", identity="i", fingerprint="f", digest="d" * 64,
            files={}, inputs={}, metrics=result.metrics, headline=result.headline, facts=result.facts,
            section=section.model_dump(mode="json"), seed=0, started_at=0, seconds=1,
        )  # fmt: skip
        return InputArtifact(out, manifest)

    def tokenizer(self, folder: Path, **section: Any) -> InputArtifact:
        return self.run(tokenizer, TokenizerSection(**{"from": str(folder)} | section), section.pop("files", None))

    def model(self, folder: Path, tokenizer_artifact: InputArtifact, **section: Any) -> InputArtifact:
        return self.run(base_model, BaseModelSection(**{"from": str(folder)} | section), tokenizer=tokenizer_artifact)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    (tmp_path / "bench").mkdir()
    return Bench(tmp_path / "bench")


def chat_folder(folder: Path, words: Tokenizer | None = None, **model: Any) -> Path:
    """A model with its tokenizer and template, and what such a folder holds beside them."""
    words = words or byte_level()
    saved(tiny_model(vocab_size=words.get_vocab_size(), max_position_embeddings=256, **model), folder)
    save_tokenizer(words, folder, eos_token="<|endoftext|>", chat_template=CHATML)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 0, "temperature": 0.6}))
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n\nA model.\n")
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    return folder


def test_a_folder_becomes_a_tokenizer_and_a_model_that_are_plain(bench: Bench, tmp_path: Path) -> None:
    folder = chat_folder(tmp_path / "origin")
    words = bench.tokenizer(folder)
    model = bench.model(folder, words)

    assert plain_model(model.folder / "model")
    assert model.manifest.facts["tokenizer"] == words.manifest.facts["tokenizer"]
    assert model.manifest.metrics["logit_difference"] == 0
    card = (model.folder / "report" / "card.md").read_text()
    assert "pytorch_model.bin" in card and "apache-2.0" in card
    assert str(tmp_path) not in (model.folder / "model" / "README.md").read_text()
    assert len(json.loads((model.folder / "report" / "samples.json").read_text())) == 4


def test_the_end_of_a_turn_joins_the_ends_that_the_model_had(bench: Bench, tmp_path: Path) -> None:
    """The template ends turns with <|im_end|>, and generation_config.json names <|endoftext|> alone."""
    folder = chat_folder(tmp_path / "origin")
    words = bench.tokenizer(folder)
    model = bench.model(folder, words)
    settings = json.loads((model.folder / "model" / "generation_config.json").read_text())
    assert settings["eos_token_id"] == [0, 2]
    assert settings.get("temperature") is None and settings["do_sample"] is False


def test_the_conversation_has_the_same_ids_before_and_after(bench: Bench, tmp_path: Path) -> None:
    folder = chat_folder(tmp_path / "origin")
    words = bench.tokenizer(folder)
    text = "<|im_start|>user\nthe file<|im_end|>\n<|im_start|>assistant\n"
    expected = byte_level().encode(text, add_special_tokens=False).ids
    ids = ChatFormat.load(words.folder / "tokenizer").prompt([{"role": "user", "content": "the file"}])
    assert ids.tolist() == expected


def test_content_in_parts_and_nothing_render_as_text(bench: Bench, tmp_path: Path) -> None:
    words = bench.tokenizer(chat_folder(tmp_path / "origin"))
    loaded = load_tokenizer(words.folder / "tokenizer")
    parts: Any = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    rendered = loaded.apply_chat_template(parts, tokenize=False)
    assert rendered == "<|im_start|>user\nab<|im_end|>\n"
    nothing: Any = [{"role": "user", "content": None}]
    assert "None" not in str(loaded.apply_chat_template(nothing, tokenize=False))


@pytest.mark.parametrize("kind", ["gpt2", "mistral", "qwen3_moe"])
def test_an_imported_version_is_measured_as_any_other(bench: Bench, tmp_path: Path, kind: str) -> None:
    more = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16} if kind == "qwen3_moe" else {}
    positions = {"n_positions": 256, "n_embd": 32, "n_layer": 2, "n_head": 4} if kind == "gpt2" else {}
    folder = chat_folder(tmp_path / "origin", model_type=kind, **more, **positions)
    model = bench.model(folder, bench.tokenizer(folder))
    sets = tmp_path / "sets"
    (sets / "tasks").mkdir(parents=True)
    (sets / "tasks" / "tasks.json").write_text("[]")
    rows = [
        {"id": f"t{n}", "text": text, "source": "s", "domain": "general", "bytes": len(text)}
        for n, text in enumerate(HELDOUT)
    ]
    (sets / "text.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (sets / "samples.jsonl").write_text(json.dumps({"id": "s", "prompt": "the file"}) + "\n")

    section = EvaluationSection(context=64, max_new_tokens=8, batch=4)
    evaluated = bench.run(evaluate_model, section, artifact=model, evaluation_sets=InputArtifact(sets, model.manifest))

    metrics = evaluated.manifest.metrics
    assert metrics["loads"] == 1
    assert metrics["export_logprob_error"] < 1e-6
    assert metrics["heldout_bits_per_byte"] > 0 and math.isfinite(metrics["heldout_bits_per_byte"])


def test_a_gguf_file_becomes_a_model_with_its_types_on_the_card(bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / "small.gguf"
    write_llama(path, quantized=True)
    words = bench.tokenizer(path)
    model = bench.model(path, words)
    card = (model.folder / "model" / "README.md").read_text()
    assert "15 tensors of Q8_0, 5 tensors of F32" in card and "dequantised from Q8_0" in card
    assert "license: apache-2.0" in card and "not for others that its name may stand for" in card
    loaded = load(model, torch.device("cpu"))
    assert 2 in loaded.stops and loaded.vocabulary == byte_level().get_vocab_size()


def test_special_tokens_of_the_recipe_reach_tokenizer_and_embedding(bench: Bench, tmp_path: Path) -> None:
    folder = chat_folder(tmp_path / "origin")
    size = byte_level().get_vocab_size()
    words = bench.tokenizer(folder, special_tokens=("<|tool|>",))
    model = bench.model(folder, words)
    assert TokenizerImport.model_validate_json((words.folder / "import.json").read_text()).added == {"<|tool|>": size}
    assert json.loads((model.folder / "model" / "config.json").read_text())["vocab_size"] == size + 1
    assert load_tokenizer(model.folder / "model").convert_tokens_to_ids("<|tool|>") == size


def test_a_template_by_name_needs_its_tokens(bench: Bench, tmp_path: Path) -> None:
    folder = save_tokenizer(sentencepiece_bpe(), tmp_path / "origin", eos_token="</s>", bos_token="<s>")
    with pytest.raises(RecipeError, match=r"chatml needs the tokens <\|im_start\|>, <\|im_end\|>.*special_tokens"):
        bench.tokenizer(folder, template="chatml")

    words = bench.tokenizer(folder, template="chatml", special_tokens=("<|im_start|>", "<|im_end|>"))
    chat = ChatFormat.load(words.folder / "tokenizer")
    ids = chat.prompt([{"role": "user", "content": "the file"}]).tolist()
    assert ids.count(1) == 1  # the start token, once
    assert json.loads((words.folder / "import.json").read_text())["template"] == "chatml"


def test_a_template_of_the_recipe_takes_the_place_of_the_own_one(bench: Bench, tmp_path: Path) -> None:
    folder = chat_folder(tmp_path / "origin")
    file = tmp_path / "mine.jinja"
    file.write_text(CHATML.replace("assistant", "helper"))
    section = TokenizerSection(**{"from": str(folder), "template": "mine.jinja"})
    words = bench.run(tokenizer, section, {"template": file})
    assert "helper" in (words.folder / "tokenizer" / "chat_template.jinja").read_text()
    with pytest.raises(RecipeError, match=r"there is no file mine.jinja"):
        bench.run(tokenizer, section)


def test_the_date_and_what_is_learned_stand_in_the_template(bench: Bench, tmp_path: Path) -> None:
    """Every copy of the folder has them: the models, the adapter, and whoever loads one of these."""
    folder = chat_folder(tmp_path / "origin")
    file = tmp_path / "mine.jinja"
    file.write_text("{{ strftime_now('%d %b %Y') }}\n" + CHATML)
    choice = {"from": str(folder), "template": "mine.jinja", "date": "2025-07-02", "train_added": True}
    words = bench.run(tokenizer, TokenizerSection.model_validate(choice), {"template": file})

    template = (words.folder / "tokenizer" / "chat_template.jinja").read_text()
    assert "02 Jul 2025" in template and "strftime_now" not in template
    chat_format = ChatFormat.load(words.folder / "tokenizer")
    assert chat_format.learns_added


def test_the_place_of_a_folder_changes_no_byte_of_the_content(bench: Bench, tmp_path: Path) -> None:
    contents = []
    for name in ("one", "two"):
        folder = chat_folder(tmp_path / name)
        (folder / f"left out of {name}").touch()
        words = bench.tokenizer(folder)
        model = bench.model(folder, words)
        parts = [(words.folder, path) for path in sorted(words.folder.rglob("*"))]
        parts += [(model.folder, path) for path in sorted(model.folder.rglob("*"))]
        contents.append(
            {
                str(path.relative_to(root)): path.read_bytes()
                for root, path in parts
                if path.is_file() and "report" not in path.parts
            }
        )
    assert contents[0] == contents[1]


def test_a_tokenizer_of_another_model_is_refused(bench: Bench, tmp_path: Path) -> None:
    folder = chat_folder(tmp_path / "origin")
    larger = byte_level()
    larger.add_tokens(["another", "word"])
    words = bench.tokenizer(save_tokenizer(larger, tmp_path / "other", eos_token="<|im_end|>"))
    with pytest.raises(InputRefused, match="the tokenizer does not fit the model: its token 'another'"):
        bench.model(folder, words)


def test_a_folder_that_is_gone_is_named(bench: Bench, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="nothing is no folder"):
        bench.tokenizer(tmp_path / "nothing")


def test_an_imported_tokenizer_is_measured_on_its_own_special_tokens_and_template(bench: Bench, tmp_path: Path) -> None:
    words = bench.tokenizer(chat_folder(tmp_path / "origin"))
    heldout = tmp_path / "corpus" / "heldout"
    heldout.mkdir(parents=True)
    pq.write_table(pa.table({"id": ["a", "b"], "text": HELDOUT}), heldout / "part-00000.parquet")

    pool = Pool(tmp_path, Execution(), EventWriter(None))
    measured = measure_tokenizer(words, InputArtifact(tmp_path / "corpus", words.manifest), pool)

    values = {name: estimate.value for name, estimate in measured.estimates.items()}
    assert values["round_trip"] == 1 and values["special_tokens"] == 1 and values["generation_mask"] == 1
