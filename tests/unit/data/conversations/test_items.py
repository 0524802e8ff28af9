"""Items from documents, wrong answers for them, refusals, and provenance."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from pipeline.recipes.loader import FOLDER
from tests.unit.data.conversations.refusals import HELPFUL, REFUSALS
from training.data.conversations.continuations import continuation_items
from training.data.conversations.dialogues import SYSTEM_PROMPTS, conversation_rows
from training.data.conversations.distractors import Distractors, same_answer
from training.data.conversations.docstrings import DocstringItem, clean_docstring, docstring_items
from training.data.conversations.items import DOCSTRING, Item, item_of, items_of
from training.data.conversations.refusals import REFUSAL_OPENINGS, is_refusal
from training.data.conversations.safety import agreement, compliance, read_prompts, refusal
from training.data.sources.provenance import file_of, group_of, is_python, module_of, part_path
from training.errors import SourceError

MODULE = '''
def shown(x):
    """Return the shown part of x, cleaned.

    More about it.
    """
    def inner():
        """Return what nobody can reach from outside."""

def _hidden():
    """Return what is not meant for others."""

def bare():
    return 1

class Box:
    """A box that holds things of one kind."""

    def open(self):
        """Open the box. The things inside are not moved."""

    def __len__(self):
        """Return how many things there are."""

class _Private:
    def method(self):
        """Return nothing that is documented publicly."""
'''


def test_only_public_documented_names_give_items() -> None:
    items = {item.name: item.answer for item in docstring_items("pack.mod", MODULE, 400)}
    assert items == {
        "pack.mod.shown": "Return the shown part of x, cleaned.",
        "pack.mod.Box": "A box that holds things of one kind.",
        "pack.mod.Box.open": "Open the box. The things inside are not moved.",
    }


def test_prompts_name_what_they_ask_for_and_do_not_change() -> None:
    first, again = (docstring_items("pack.mod", MODULE, 400) for _ in range(2))
    assert [item.prompt for item in first] == [item.prompt for item in again]
    assert all(item.name in item.prompt for item in first)
    many = [DocstringItem(f"pack.name{number}", "").prompt for number in range(100)]
    assert 25 < sum("`" in prompt for prompt in many) < 75


@pytest.mark.parametrize("text", ["def broken(:\n", "x = 1\0", "(" * 10_000, "    indented\n"])
def test_text_that_is_not_python_gives_no_items(text: str) -> None:
    assert docstring_items("m", text, 400) == []


def test_private_modules_give_no_items() -> None:
    assert docstring_items("pack._mod", MODULE, 400) == []


@pytest.mark.parametrize(
    ("docstring", "answer"),
    [
        ("Return the\n    value   of x", "Return the value of x."),
        ("f(x) -> int\n\nReturn the value of x.", "Return the value of x."),
        ("f(x) -> int\nReturn the value of x.", "Return the value of x."),
        ("Use :func:`~os.path.join` or ``x`` for it.", "Use `os.path.join` or `x` for it."),
        (">>> f(1)\n2", ""),
        ("Short.", ""),
        ("====== ===== ======", ""),
        ("First sentence is kept here. " + "Second is far too long " * 5 + ".", "First sentence is kept here."),
        ("One sentence that is much too long for the limit " * 3, ""),
        ("", ""),
    ],
)
def test_docstrings_become_one_line(docstring: str, answer: str) -> None:
    assert clean_docstring(docstring, 60) == answer


PROSE = (
    "The ship left the harbour very early in the morning while the whole town was still asleep. Nobody saw it go "
    "except the keeper of the old lighthouse. He wrote its name into his book.\n\nShort one."
)


def test_a_continuation_is_the_sentence_that_follows() -> None:
    items = continuation_items(PROSE, 400)
    assert [item.answer for item in items] == ["Nobody saw it go except the keeper of the old lighthouse."]
    assert items[0].passage.startswith("The ship left")
    assert items[0].passage.endswith("asleep.")
    assert items[0].prompt.startswith("How does this text go on?\n\nThe ship")


def test_continuations_do_not_overlap_and_respect_the_limit() -> None:
    text = " ".join(
        f"Sentence number {number} of this long paragraph says something that is quite new to all of us."
        for number in range(40)
    )
    items = continuation_items(text, 400)
    sentences = [sentence for item in items for sentence in (item.passage + " " + item.answer).split(". ")]
    assert len(items) > 5
    assert len(sentences) == len(set(sentences))
    assert continuation_items(text, 30) == []


def test_the_kind_follows_the_file() -> None:
    row = {"id": "1", "domain": "general", "text": MODULE, "path": "pack/mod.py.gz"}
    assert {item.kind for item in items_of(row)} == {"docstring"}
    assert {item.kind for item in items_of({**row, "text": PROSE, "path": "a.txt"})} == {"continuation"}


def items(*answers: str, domain: str = "general", kind: str = DOCSTRING) -> list[Item]:
    return [Item(kind, f"{domain} {answer}?", answer, answer, domain, "x") for answer in answers]


def test_wrong_answers_are_near_in_length_and_all_different() -> None:
    pool = items("a" * 10, "b" * 10, "B" * 10 + ".", "c" * 11, "d" * 30, "e" * 90)
    assert sorted(Distractors(pool).similar_in_length(pool[0], 2)) == ["b" * 10, "c" * 11]
    assert len(Distractors(pool).similar_in_length(pool[0], 9)) == 4  # b and B. are the same answer


@pytest.mark.parametrize("other", ["yes.", "Ye\u0301s", "Y\u00c9S"])
def test_an_answer_in_another_form_is_the_same_answer(other: str) -> None:
    pool = items("Y\u00e9s" if other != "yes." else "Yes", other, "no")
    assert Distractors(pool).similar_in_length(pool[0], 2) == ["no"]
    assert same_answer("a  b\n", "a b") and same_answer("Stra\u00dfe", "STRASSE") and not same_answer("a b", "ab")


def test_a_conversation_may_begin_with_a_system_turn_or_with_another_question() -> None:
    pool = [(item, 0) for item in items(*(f"answer {number}" for number in range(400)))]
    rows = conversation_rows(pool)
    assert rows == conversation_rows(pool)
    assert [item_of(row).answer for row in rows] == [item.answer for item, _ in pool]
    assert len({row["id"] for row in rows}) == len(rows)
    talks = [json.loads(row["messages"]) for row in rows]
    systems = [talk for talk in talks if talk[0]["role"] == "system"]
    double = [(talk, place) for place, talk in enumerate(talks) if len(talk) == 4]
    assert 5 < len(systems) < 40 and 5 < len(double) < 40
    assert {talk[0]["content"] for talk in systems} <= set(SYSTEM_PROMPTS)
    assert all(talk[1]["content"] == pool[place - 1][0].answer for talk, place in double)


def test_a_first_question_is_of_the_same_domain_and_another_one() -> None:
    mixed = [(items("x", domain=f"d{number}")[0], 0) for number in range(200)]
    copies = [(items("x")[0], repeat) for repeat in range(200)]
    long = [(items(str(number) * 400)[0], 0) for number in range(200)]
    for pool in (mixed, copies, long):
        assert all(len(json.loads(row["messages"])) < 4 for row in conversation_rows(pool))


def test_wrong_answers_stay_in_the_domain_while_it_has_enough() -> None:
    domain_items, others = items("one", "two", "six", domain="d"), items("ten", "red", "sun")
    distractors = Distractors([*domain_items, *others])
    assert set(distractors.similar_in_length(domain_items[0], 2)) == {"two", "six"}
    assert len(distractors.similar_in_length(domain_items[0], 4)) == 4
    assert distractors.similar_in_length(items("one", kind="continuation")[0], 1) == []
    assert distractors.of_kind("continuation", domain_items[0]) is None
    assert Distractors(domain_items[:1]).of_kind(DOCSTRING, domain_items[0]) is None


def test_an_item_is_known_by_its_own_words() -> None:
    assert items("a")[0].id == items("a")[0].id != items("b")[0].id
    row = items("a")[0].row(repeat=1)
    assert row["id"] != items("a")[0].id
    assert json.loads(row["messages"]) == [
        {"role": "user", "content": "general a?"},
        {"role": "assistant", "content": "a"},
    ]


def test_every_written_refusal_is_recognised() -> None:
    answers = {refusal("How?", "arson", repeat) for repeat in range(30)}
    assert len(answers) == 9
    assert all(is_refusal(answer) for answer in answers)
    assert any("arson" in answer for answer in answers)
    assert all(any(answer.startswith(opening) for answer in answers) for opening in REFUSAL_OPENINGS)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  i can’t help with that", True),
        ("**Sorry, I can't**", True),
        ("\"I won't help you", True),
        ("Sure, here is how.", False),
        ("", False),
        ("You can say: I can't help with that.", False),
        ("I can help with that.", False),
        ("Sorry, I cannot", True),
        ("Sorry, I can't see the picture.", False),
    ],
)
def test_what_counts_as_a_refusal(text: str, expected: bool) -> None:
    assert is_refusal(text) is expected


def test_refusals_of_open_chat_models_are_seen_and_helpful_answers_are_not() -> None:
    missed = [text for text in REFUSALS if not is_refusal(text)]
    wrong = [text for text in HELPFUL if is_refusal(text)]
    assert min(len(REFUSALS), len(HELPFUL)) >= 90
    assert len(missed) <= 0.03 * len(REFUSALS), missed
    assert len(wrong) <= 0.03 * len(HELPFUL), wrong


@pytest.mark.parametrize("apostrophe", ["'", "\u2019", "\u2018", "\u02bc", "`"])
def test_the_kind_of_apostrophe_does_not_count(apostrophe: str) -> None:
    for texts, expected in ((REFUSALS, True), (HELPFUL, False)):
        turned = [re.sub("['\u2019]", apostrophe, text) for text in texts]
        assert sum(is_refusal(text) is expected for text in turned) >= 0.97 * len(texts)


def test_what_is_trained_as_an_answer_is_no_refusal() -> None:
    assert not any(is_refusal(compliance(str(number))) for number in range(20))
    for name in ("benign_train", "benign_eval", "greetings_train", "greetings_eval"):
        rows = read_prompts(FOLDER / f"safety/{name}.jsonl", ("prompt", "topic", "answer"))
        assert not [row for row in rows if is_refusal(row["answer"]) or is_refusal(agreement(row["answer"]))]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"prompt": "a", "topic": "b"}\n{"prompt": ', r"p\.jsonl:2: is not JSON"),
        ('{"prompt": "a"}', r"p\.jsonl:1: must be an object with the keys prompt, topic, found prompt"),
        ('{"prompt": "a", "topic": "b", "tpoic": "c"}', "found prompt, topic, tpoic"),
        ("[1]", "found list"),
        ('{"prompt": " ", "topic": "b"}', "prompt must be a text that is not empty"),
        ('{"prompt": "a", "topic": 3}', "topic must be a text"),
        ('{"prompt": "a", "topic": "b"}\n{"prompt": "a", "topic": "c"}', r"p\.jsonl:2: .* is the same as in line 1"),
        ("\n", "holds no prompt"),
    ],
)
def test_bad_files_of_prompts(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "p.jsonl").write_text(content)
    with pytest.raises(SourceError, match=message):
        read_prompts(tmp_path / "p.jsonl", ("prompt", "topic"))


def test_prompts_that_are_not_utf8_or_missing(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_bytes(b"\xff")
    for name in ("p.jsonl", "gone.jsonl"):
        with pytest.raises(SourceError, match=name):
            read_prompts(tmp_path / name, ("prompt",))


def test_provenance() -> None:
    path = part_path("a/b.jsonl.gz#12", 3)
    assert path == "a/b.jsonl.gz#12#part3"
    assert group_of(path) == "a/b.jsonl.gz#12"
    assert file_of(path) == "a/b.jsonl.gz"
    assert is_python("a/b.py.zst#part2")
    assert not is_python("a/b.pyi")
    assert [module_of(name) for name in ("a/b.py", "a/__init__.py#part1", "c.py.gz", "__init__.py")] == [
        "a.b",
        "a",
        "c",
        "",
    ]
