"""The six data stages as real jobs, on Python sources and on plain text."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.unit.data.conftest import Pipeline
from training.data.conversations.refusals import is_refusal
from training.data.sources.provenance import module_of
from training.data.tables import text_id
from training.errors import RecipeError, SourceError

STDLIB = {
    "name": "stdlib",
    "stdlib": True,
    "include": ["asyncio/*", "json/*", "email/*", "text*.py", "c*.py", "s*.py", "encodings/iso8859*", "z*.py"],
}
CORPUS = {"heldout": 0.15, "domains": {"network": ["stdlib/asyncio/*"]}}
EVALUATION = {"text_kilobytes": 32, "questions": 40, "domain_questions": 10, "preferences": 30}


def prompts(folder: Path) -> dict[str, dict[str, Path]]:
    """Written prompts for training and for evaluation."""
    files: dict[str, dict[str, Path]] = {}
    for split in ("train", "eval"):
        files[split] = {}
        for kind in ("harmful", "benign"):
            path = files[split][kind] = folder / f"{kind}_{split}.jsonl"
            rows = [
                {
                    "prompt": f"How would one {split} the {kind} thing number {number}?",
                    "topic": f"thing {number}",
                    **({"answer": f"Use the tool number {number}."} if kind == "benign" else {}),
                }
                for number in range(8)
            ]
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return files


def run_all(pipeline: Pipeline, source: dict[str, Any], corpus: dict[str, Any], domain: str) -> dict[str, Path]:
    files = prompts(pipeline.root)
    return {
        "raw_corpus": pipeline.run("raw_corpus", {"sources": [source]}),
        "corpus": pipeline.run("corpus", corpus, ("raw_corpus",)),
        "evaluation_sets": pipeline.run("evaluation_sets", EVALUATION, ("corpus",), files["eval"]),
        "instruction_data": pipeline.run(
            "instruction_data", {"safety_repeats": 2}, ("corpus", "evaluation_sets"), files["train"]
        ),
        "preference_data": pipeline.run("preference_data", {}, ("instruction_data",)),
        "adapter_data": pipeline.run(
            "adapter_data", {"domain": domain}, ("corpus", "instruction_data", "evaluation_sets")
        ),
    }


@pytest.fixture(scope="module")
def code(make_pipeline: Callable[[], Pipeline]) -> tuple[Pipeline, dict[str, Path]]:
    pipeline = make_pipeline()
    return pipeline, run_all(pipeline, STDLIB, CORPUS, "network")


def rows(path: Path) -> list[dict[str, Any]]:
    return [
        row
        for file in ([path] if path.is_file() else sorted(path.glob("*.parquet")))
        for row in pq.read_table(file).to_pylist()
    ]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_running_again_gives_the_same_bytes(
    code: tuple[Pipeline, dict[str, Path]], make_pipeline: Callable[[], Pipeline]
) -> None:
    pipeline, folders = code
    again = make_pipeline()
    run_all(again, STDLIB, CORPUS, "network")
    for asset in folders:
        assert again.promoted(asset).digest == pipeline.promoted(asset).digest, asset


def test_every_stage_reports_to_people(code: tuple[Pipeline, dict[str, Path]]) -> None:
    for asset, folder in code[1].items():
        assert (folder / "report" / "card.md").read_text().startswith("# "), asset
        pictures = list((folder / "report").glob("*.png"))
        assert pictures, asset
        assert all(0 < picture.stat().st_size < 100_000 for picture in pictures), asset
        samples = json.loads((folder / "report" / "samples.json").read_text())
        assert 0 < len(samples) <= 20, asset
        assert all(not isinstance(value, dict | list) for row in samples for value in row.values()), asset


def test_the_raw_corpus_says_where_texts_are_from(code: tuple[Pipeline, dict[str, Path]]) -> None:
    documents = rows(code[1]["raw_corpus"] / "documents")
    assert all(row["id"] == text_id(row["text"]) and row["licence"] == "PSF-2.0" for row in documents)
    assert code[0].promoted("raw_corpus").metrics["documents"] == len(documents)


def test_the_corpus_is_split_without_leaks(code: tuple[Pipeline, dict[str, Path]]) -> None:
    pipeline, folders = code
    train, heldout = (rows(folders["corpus"] / split) for split in ("train", "heldout"))
    assert [row["id"] for row in train] == sorted({row["id"] for row in train})
    assert not {row["id"] for row in train} & {row["id"] for row in heldout}
    assert {row["domain"] for row in heldout} == {row["domain"] for row in train} == {"general", "network"}
    assert all((row["domain"] == "network") == row["path"].startswith("asyncio/") for row in train + heldout)
    dropped = lines(folders["corpus"] / "dropped.jsonl")
    assert {"near-duplicate", "too short"} <= {row["reason"] for row in dropped}
    metrics = pipeline.promoted("corpus").metrics
    assert metrics["dropped_near_duplicate"] >= 2  # the tables of ISO 8859 differ in little
    raw = pipeline.promoted("raw_corpus").metrics["documents"]
    gone = sum(value for name, value in metrics.items() if name.startswith("dropped_"))
    assert len(train) + len(heldout) + gone >= raw  # cut documents count more than once


def test_questions_have_one_right_answer(code: tuple[Pipeline, dict[str, Path]]) -> None:
    folder, corpus = code[1]["evaluation_sets"], code[1]["corpus"]
    heldout = {row["id"]: row for row in rows(corpus / "heldout")}
    questions = lines(folder / "questions.jsonl")

    assert Counter(row["domain"] for row in questions)["general"] == 40
    for row in questions:
        assert len(set(row["choices"])) == 4
        assert row["source_id"] in heldout
        assert row["domain"] == heldout[row["source_id"]]["domain"]
        assert row["choices"][row["answer"]].split()[0] in heldout[row["source_id"]]["text"]
    assert len({row["answer"] for row in questions}) == 4
    assert len({row["id"] for row in questions}) == len(questions)

    for row in lines(folder / "preferences.jsonl"):
        assert row["chosen"] != row["rejected"]

    text = Counter[str]()
    for row in lines(folder / "text.jsonl"):
        assert row["bytes"] == len(row["text"].encode())
        text[row["domain"]] += row["bytes"]
    assert set(text) == {"general", "network"}
    assert max(text.values()) <= 32 * 1024


def test_exclusions_name_documents_and_items(code: tuple[Pipeline, dict[str, Path]]) -> None:
    folder = code[1]["evaluation_sets"]
    train = {row["id"] for row in rows(code[1]["corpus"] / "train")}
    items = {
        row["id"]
        for name in ("text", "questions", "preferences", "harmful", "benign", "samples")
        for row in lines(folder / f"{name}.jsonl")
    }
    exclusions = rows(folder / "exclusions.parquet")
    assert exclusions == sorted(exclusions, key=lambda row: (row["id"], row["item"], row["reason"]))
    for row in exclusions:
        assert row["id"] in train
        assert row["item"] in items
        assert 0.5 <= row["overlap"] <= 1


def test_exclusions_keep_their_bytes_when_other_items_change(
    code: tuple[Pipeline, dict[str, Path]], tmp_path: Path
) -> None:
    pipeline, folders = code
    before = (folders["evaluation_sets"] / "exclusions.parquet").read_bytes()
    files = prompts(tmp_path)["eval"]
    with files["harmful"].open("a") as file:
        file.write('{"prompt": "How would one do something else that no document holds?", "topic": "x"}\n')
    changed = pipeline.run(
        "evaluation_sets", {**EVALUATION, "samples": ["What is a sample that nobody else has?"]}, ("corpus",), files
    )
    assert (changed / "exclusions.parquet").read_bytes() == before
    assert len(lines(changed / "harmful.jsonl")) == 9
    pipeline.run("evaluation_sets", EVALUATION, ("corpus",), prompts(pipeline.root)["eval"])


def test_conversations_hold_nothing_held_out(code: tuple[Pipeline, dict[str, Path]]) -> None:
    folders = code[1]
    conversations = rows(folders["instruction_data"] / "train.parquet")
    asked = {message["content"] for row in conversations for message in json.loads(row["messages"])}
    for name in ("questions", "harmful", "benign", "preferences"):
        assert not asked & {row["prompt"] for row in lines(folders["evaluation_sets"] / f"{name}.jsonl")}
    excluded = {row["id"] for row in rows(folders["evaluation_sets"] / "exclusions.parquet")}
    assert not excluded & {row["source_id"] for row in conversations}
    modules = {
        row["id"]: module_of(row["path"]) for split in ("train", "heldout") for row in rows(folders["corpus"] / split)
    }
    heldout = {modules[row["id"]] for row in rows(folders["corpus"] / "heldout")}
    assert not heldout & {modules[row["source_id"]] for row in conversations if row["source_id"] != "safety"}


def test_written_prompts_are_refused_or_answered_and_repeated(code: tuple[Pipeline, dict[str, Path]]) -> None:
    conversations = rows(code[1]["instruction_data"] / "train.parquet")
    assert len({row["id"] for row in conversations}) == len(conversations)
    kinds = Counter(row["kind"] for row in conversations)
    assert kinds["refusal"] == kinds["benign"] == 16
    assert kinds["docstring"] > 100
    for row in conversations:
        *_, user, assistant = json.loads(row["messages"])
        assert (user["role"], assistant["role"]) == ("user", "assistant")
        assert is_refusal(assistant["content"]) is (row["kind"] == "refusal")
        assert len(assistant["content"]) <= 400


def test_a_few_conversations_have_a_system_turn_or_two_answers(code: tuple[Pipeline, dict[str, Path]]) -> None:
    conversations = rows(code[1]["instruction_data"] / "train.parquet")
    roles = Counter(tuple(message["role"] for message in json.loads(row["messages"])) for row in conversations)
    plain, with_system = ("user", "assistant"), ("system", "user", "assistant")
    assert set(roles) == {plain, with_system, plain + plain}
    assert 0.01 < roles[with_system] / len(conversations) < 0.1
    assert 0.01 < roles[plain + plain] / len(conversations) < 0.1


def test_pairs_prefer_the_right_answer(code: tuple[Pipeline, dict[str, Path]]) -> None:
    pairs = rows(code[1]["preference_data"] / "train.parquet")
    conversations = rows(code[1]["instruction_data"] / "train.parquet")
    answers = {json.loads(row["messages"])[-1]["content"] for row in conversations}
    assert {row["kind"] for row in pairs} == {"docstring", "refusal", "benign"}
    for row in pairs:
        assert row["chosen"] != row["rejected"]
        assert row["chosen"] in answers
        assert is_refusal(row["chosen"]) is (row["kind"] == "refusal")
        assert is_refusal(row["rejected"]) is (row["kind"] == "benign")


def test_the_adapter_gets_its_domain(code: tuple[Pipeline, dict[str, Path]]) -> None:
    folder = code[1]["adapter_data"]
    assert all(row["domain"] == "network" for row in rows(folder / "documents.parquet"))
    domains = Counter(row["domain"] for row in rows(folder / "train.parquet"))
    assert domains["network"] > 20
    assert abs(domains["general"] / domains.total() - 0.1) < 0.02


def test_caps_are_kept(code: tuple[Pipeline, dict[str, Path]]) -> None:
    pipeline = code[0]
    files = prompts(pipeline.root)["train"]
    capped = pipeline.run("instruction_data", {"max_conversations": 10}, ("corpus", "evaluation_sets"), files)
    assert Counter(row["kind"] for row in rows(capped / "train.parquet"))["docstring"] == 10
    pairs = rows(pipeline.run("preference_data", {"max_pairs": 20}, ("instruction_data",)) / "train.parquet")
    kinds = Counter(row["kind"] for row in pairs)
    assert kinds["refusal"] + kinds["benign"] == 10, "safety takes at most half"
    assert kinds["docstring"] == 10
    assert len({row["prompt"] for row in pairs}) == 20, "one pair a prompt"
    pipeline.run("instruction_data", {"safety_repeats": 2}, ("corpus", "evaluation_sets"), files)


def test_a_domain_without_documents_is_a_clear_error(code: tuple[Pipeline, dict[str, Path]]) -> None:
    with pytest.raises(RecipeError, match=r"no document of 'cooking'.*widen the globs"):
        code[0].run("adapter_data", {"domain": "cooking"}, ("corpus", "instruction_data", "evaluation_sets"))


def test_as_many_are_refused_as_are_answered(code: tuple[Pipeline, dict[str, Path]], tmp_path: Path) -> None:
    """More prompts to answer than to refuse taught tiny to answer what it should refuse: 0.84 of refusals became 0.62.

    The file to refuse has 3 prompts, the other one has 8.
    """
    pipeline, files = code[0], prompts(tmp_path)["train"]
    files["harmful"].write_text("".join(files["harmful"].read_text().splitlines(keepends=True)[:3]))
    made = rows(
        pipeline.run("instruction_data", {"safety_repeats": 2}, ("corpus", "evaluation_sets"), files) / "train.parquet"
    )
    kinds = Counter(row["kind"] for row in made)
    assert kinds["refusal"] == kinds["benign"] == 16
    answers = {row["messages"] for row in made if row["kind"] == "refusal"}
    assert len(answers) == 16, "each time with another refusal"
    pipeline.run("instruction_data", {"safety_repeats": 2}, ("corpus", "evaluation_sets"), prompts(tmp_path)["train"])


def test_a_bad_line_of_the_written_prompts_is_named(code: tuple[Pipeline, dict[str, Path]], tmp_path: Path) -> None:
    files = prompts(tmp_path)["train"]
    files["benign"].write_text('{"prompt": "a", "topic": "b"}\n')
    with pytest.raises(SourceError, match=r"benign_train\.jsonl:1: .*prompt, topic, answer"):
        code[0].run("instruction_data", {}, ("corpus", "evaluation_sets"), files)


def story(number: int) -> str:
    """Paragraphs of sentences that no other story has."""
    choose = random.Random(number)
    words = [
        f"{first}{second}"
        for first in ("ba", "ko", "li", "mu", "ne", "ro", "sa", "ti")
        for second in ("lan", "mer", "nos", "pir", "tak", "vel", "wun", "zom")
    ]
    return "\n\n".join(
        " ".join(" ".join(choose.choices(words, k=16)).capitalize() + "." for _ in range(12)) for _ in range(3)
    )


def test_a_folder_of_plain_text_goes_all_the_way(pipeline: Pipeline) -> None:
    folder = pipeline.root / "notes"
    folder.mkdir()
    for number in range(30):
        (folder / f"{number}.txt").write_text(story(number))
    folders = run_all(pipeline, {"name": "notes", "path": str(folder)}, {"heldout": 0.1}, "general")
    assert len(lines(folders["evaluation_sets"] / "questions.jsonl")) >= 20
    kinds = Counter(row["kind"] for row in rows(folders["instruction_data"] / "train.parquet"))
    assert kinds["continuation"] > 100
    assert kinds["docstring"] == 0
    assert len(rows(folders["adapter_data"] / "documents.parquet")) >= 20


def test_what_is_in_every_document_excludes_none(pipeline: Pipeline) -> None:
    folder = pipeline.root / "notes"
    folder.mkdir()
    licence = (
        "Permission is granted to everyone to read this text and to copy it as often as they like to do so. "
        "Nobody may be held responsible for what it says or for what comes of it in the end. "
    )
    for number in range(30):
        (folder / f"{number}.txt").write_text(f"{licence}\n\n{story(number)}")
    pipeline.run("raw_corpus", {"sources": [{"name": "notes", "path": str(folder)}]})
    pipeline.run("corpus", {}, ("raw_corpus",))
    sets = pipeline.run("evaluation_sets", EVALUATION, ("corpus",), prompts(pipeline.root)["eval"])
    assert rows(sets / "exclusions.parquet") == []
    assert not any("Permission" in row["prompt"] for row in lines(sets / "questions.jsonl"))


def test_a_copied_passage_excludes_its_document(pipeline: Pipeline) -> None:
    folder = pipeline.root / "notes"
    folder.mkdir()
    for number in range(30):
        (folder / f"{number}.txt").write_text(story(number))
    pipeline.run("raw_corpus", {"sources": [{"name": "notes", "path": str(folder)}]})
    heldout = rows(pipeline.run("corpus", {}, ("raw_corpus",)) / "heldout")
    copied = heldout[0]["text"].split("\n\n")[0]
    train = next(number for number in range(30) if f"{number}.txt" not in {row["path"] for row in heldout})

    (folder / f"{train}.txt").write_text(f"{story(train)}\n\n{copied}")
    pipeline.run("raw_corpus", {"sources": [{"name": "notes", "path": str(folder)}]})
    corpus = pipeline.run("corpus", {}, ("raw_corpus",))
    thief = next(row["id"] for row in rows(corpus / "train") if row["path"] == f"{train}.txt")
    sets = pipeline.run("evaluation_sets", EVALUATION, ("corpus",), prompts(pipeline.root)["eval"])
    assert {row["id"] for row in rows(sets / "exclusions.parquet")} == {thief}
    data = pipeline.run("instruction_data", {}, ("corpus", "evaluation_sets"), prompts(pipeline.root)["train"])
    assert thief not in {row["source_id"] for row in rows(data / "train.parquet")}


def test_one_document_cannot_be_split(pipeline: Pipeline) -> None:
    (pipeline.root / "a.txt").write_text(story(1))
    pipeline.run("raw_corpus", {"sources": [{"name": "a", "path": str(pipeline.root / "a.txt")}]})
    with pytest.raises(RecipeError, match="none can be held out"):
        pipeline.run("corpus", {}, ("raw_corpus",))
    with pytest.raises(RecipeError, match=r"\(1 too short, such as a/a\.txt\); loosen corpus\.min_characters"):
        pipeline.run("corpus", {"min_characters": 10**6}, ("raw_corpus",))


def test_bad_rows_are_counted_and_listed(pipeline: Pipeline) -> None:
    (pipeline.root / "a.jsonl").write_text('{"text": "good"}\n{"text": 1}\nbad\n')
    section = {"sources": [{"name": "a", "path": str(pipeline.root / "a.jsonl")}]}
    with pytest.raises(SourceError, match=r"a\.jsonl:2"):
        pipeline.run("raw_corpus", section)
    folder = pipeline.run("raw_corpus", {**section, "on_bad_row": "skip"})
    assert pipeline.promoted("raw_corpus").metrics == {
        "documents": 1.0,
        "bytes": 4.0,
        "bad_rows": 2.0,
        "left_out_files": 0.0,
    }
    assert "a.jsonl:3: is not JSON" in (folder / "report" / "card.md").read_text()


def test_files_that_are_left_out_are_counted_by_reason(pipeline: Pipeline) -> None:
    source = pipeline.root / "notes"
    source.mkdir()
    for name in ("a.txt", "b.pdf", "c.pdf", ".hidden"):
        (source / name).write_text("good")
    (source / "d.csv").write_text("id,text\n")
    folder = pipeline.run("raw_corpus", {"sources": [{"name": "a", "path": str(source)}]})
    assert pipeline.promoted("raw_corpus").metrics["left_out_files"] == 4
    left_out = "2 .pdf, 1 hidden, 1 without a row of text"
    assert left_out in (folder / "report" / "card.md").read_text()
    assert f"a: left out: {left_out}" in next(pipeline.root.glob("attempts/*/events.jsonl")).read_text()


def test_shards_are_of_the_wanted_size(pipeline: Pipeline) -> None:
    (pipeline.root / "a.jsonl").write_text(
        "".join(json.dumps({"text": f"{number}" * 100_000}) + "\n" for number in range(10, 30))
    )
    section = {"sources": [{"name": "a", "path": str(pipeline.root / "a.jsonl")}], "shard_megabytes": 1}
    parts = sorted((pipeline.run("raw_corpus", section) / "documents").iterdir())
    assert [path.name for path in parts] == [f"part-{number:05d}.parquet" for number in range(4)]
    assert sum(pq.read_metadata(path).num_rows for path in parts) == 20
