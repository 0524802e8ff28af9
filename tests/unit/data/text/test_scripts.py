"""Corpora of other scripts as real jobs: they give questions and pairs, or the cause why not is told."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import pytest

from tests.unit.data.conftest import Pipeline
from tests.unit.data.test_stages import EVALUATION, lines, prompts, rows
from training.data.text.overlap import EvaluationItem, OverlapIndex
from training.errors import RecipeError
from training.evaluation.corpora import measure_evaluation_sets
from training.job.context import InputArtifact

THAI = """
วันนี้ อากาศ ดีมาก เราไป เดินเล่น ด้วยกัน กินข้าว ที่บ้าน ตอนเย็น แม่น้ำ ภูเขา ทะเล โรงเรียน หนังสือ ครู นักเรียน ตลาด ผลไม้ รถไฟ เมือง
ประเทศ เพื่อน ครอบครัว ทำงาน เขียน อ่าน ฟังเพลง ดูหนัง สวนสาธารณะ ดอกไม้ ต้นไม้ แมว หมา นก ปลา ช้าง เสื้อผ้า สีแดง สีเขียว ฝนตก"""
SCRIPTS = {
    "chinese": ("天气公园散步晚上回家吃饭会议讨论计划办法明天开始执行学校图书城市山水", "", "。"),
    "thai": (tuple(THAI.split()), "", " "),
    "hindi": (("राम", "घर", "गया", "माँ", "किताब", "नई", "खुश", "खर्च", "करना", "पानी", "शहर", "रात"), " ", "। "),
}


def page(script: str, number: int) -> str:
    """Paragraphs of sentences that no other page has."""
    draw = random.Random(number)
    words, space, end = SCRIPTS[script]
    sentences = [space.join(draw.choices(words, k=22 if script == "chinese" else 12)) + end for _ in range(36)]
    return "\n\n".join("".join(sentences[start : start + 12]) for start in range(0, 36, 12))


def built(pipeline: Pipeline, texts: list[str]) -> tuple[Path, InputArtifact]:
    """The corpus of some documents, and its evaluation sets."""
    folder = pipeline.root / "source"
    folder.mkdir()
    for number, text in enumerate(texts):
        (folder / f"{number}.txt").write_text(text)
    pipeline.run("raw_corpus", {"sources": [{"name": "source", "path": str(folder)}]})
    corpus = pipeline.run("corpus", {"heldout": 0.2}, ("raw_corpus",))
    sets = pipeline.run("evaluation_sets", EVALUATION, ("corpus",), prompts(pipeline.root)["eval"])
    return corpus, InputArtifact(sets, pipeline.promoted("evaluation_sets"))


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_corpus_of_another_script_goes_all_the_way(pipeline: Pipeline, script: str) -> None:
    _, sets = built(pipeline, [page(script, number) for number in range(30)])
    assert measure_evaluation_sets(sets).estimates["questions"].value >= 20
    conversations = pipeline.run("instruction_data", {}, ("corpus", "evaluation_sets"), prompts(pipeline.root)["train"])
    assert Counter(row["kind"] for row in rows(conversations / "train.parquet"))["continuation"] > 60
    pairs = rows(pipeline.run("preference_data", {}, ("instruction_data",)) / "train.parquet")
    assert Counter(row["kind"] for row in pairs)["continuation"] > 60


def test_a_text_without_sentences_tells_why_there_are_no_questions(pipeline: Pipeline) -> None:
    words = SCRIPTS["hindi"][0]
    _, sets = built(
        pipeline,
        ["\n\n".join(" ".join(random.Random(number).choices(words, k=120)) for _ in range(2)) for number in range(30)],
    )
    measurement = measure_evaluation_sets(sets)
    for metric in ("questions", "preference_pairs"):
        assert metric not in measurement.estimates
        assert "paragraphs without the end of a sentence inside" in measurement.missing[metric]
        assert ".txt" in measurement.missing[metric]
    with pytest.raises(RecipeError, match=r"give no question: \d+ paragraphs without the end of a sentence .*\.txt"):
        pipeline.run("instruction_data", {}, ("corpus", "evaluation_sets"), prompts(pipeline.root)["train"])


def test_few_questions_are_explained_item_by_item(pipeline: Pipeline) -> None:
    _, sets = built(pipeline, [page("hindi", number).split("\n\n")[0] + "\n\nछोटा।" for number in range(30)])
    measurement = measure_evaluation_sets(sets)
    assert 0 < measurement.estimates["questions"].value < EVALUATION["questions"]
    reasons = [item for item in measurement.items if item["metric"] == "questions"]
    assert reasons[0]["reason"] == "paragraphs shorter than 100 characters"
    assert reasons[0]["path"].endswith(".txt")
    assert json.dumps(reasons)


def test_a_copied_passage_without_spaces_excludes_its_document(pipeline: Pipeline) -> None:
    texts = [page("chinese", number) for number in range(30)]
    corpus, sets = built(pipeline, texts)
    heldout = rows(corpus / "heldout")
    item = lines(sets.folder / "questions.jsonl")[0]
    source = next(row["text"] for row in heldout if row["id"] == item["source_id"])
    evidence = item["prompt"].split("\n\n")[1] + item["choices"][item["answer"]]
    index = OverlapIndex([EvaluationItem("x", evidence)], 13, 0.5)
    assert [overlap.item for overlap in index.overlaps("d", source)] == ["x"]
    assert not any(list(index.overlaps("d", row["text"])) for row in rows(corpus / "train"))


@pytest.mark.parametrize(
    ("text", "document"),
    [
        (
            "今天天气很好，我们一起去公园散步，晚上再回家吃饭。",
            "前。今天天气很好我们一起去公园散步，晚上再回家吃饭！后。",
        ),
        ("खर्च करना अच्छा नहीं है राम", "आज खर्च करना, अच्छा नहीं है राम।"),
        ("อากาศดีมากเราไปเดินเล่น", "วันนี้อากาศดีมาก เราไปเดินเล่นกัน"),
    ],
)
def test_a_copied_item_is_seen_in_every_script(text: str, document: str) -> None:
    index = OverlapIndex([EvaluationItem("x", text)], 13, 0.5)
    assert [overlap.share for overlap in index.overlaps("d", document)] == [1]


def test_short_items_and_other_vowels_exclude_nothing() -> None:
    index = OverlapIndex([EvaluationItem("a", "今天天气"), EvaluationItem("b", "खर्च करना अच्छा नहीं है राम")], 13, 0.5)
    assert not list(index.overlaps("d", "今天天气很好。खर्चा करने अच्छी नहीं है रमा"))
