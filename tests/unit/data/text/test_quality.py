"""Rules for prose: each drops what it names, keeps good prose, and says why."""

from __future__ import annotations

import random
from typing import Any

import pytest
from pydantic import ValidationError

from training.data.text.cleaning import clean
from training.data.text.languages import language_of
from training.data.text.quality import broken_rule, c4_lines
from training.specs.base import digest_of
from training.specs.cleaning import C4, Rules
from training.specs.corpus import CorpusSection

_SENTENCE = "The committee of the town met in the evening to talk about the bridge that had been closed for two years."
_SYLLABLES = ("ba", "ko", "li", "mu", "ne", "ro", "sa", "ti", "lan", "mer")


def sentence(draw: random.Random) -> str:
    words = ["".join(draw.choices(_SYLLABLES, k=draw.randint(1, 3))) for _ in range(12)]
    words[2], words[6], words[9] = draw.choice(("the", "of", "and")), draw.choice(("to", "that")), "with"
    return " ".join(words).capitalize() + "."


def prose(seed: int = 0, sentences: int = 12) -> str:
    """Paragraphs that no rule has anything against."""
    draw = random.Random(seed)
    made = [_SENTENCE, *(sentence(draw) for _ in range(sentences - 1))]
    return "\n".join(" ".join(made[at : at + 3]) for at in range(0, sentences, 3))


EVERY = {"gopher": {}, "repetition": {}, "c4": {}, "fineweb": {}}
BAD = {
    ("gopher", "words"): "Too short to learn from, and that is all of the text that we have.",
    ("gopher", "characters on average"): "antidisestablishmentarianism incomprehensibilities " * 60
    + "the of and to be",
    ("gopher", "hashes for each word"): " ".join(f"#tag{number} word the of" for number in range(100)),
    ("gopher", "bullet"): "\n".join(f"- item {number} of the list that we have to make" for number in range(30)),
    ("gopher", "ellipsis"): "\n".join(
        f"and the story of number {number} goes on to the next page..." for number in range(30)
    ),
    ("gopher", "hold a letter"): " ".join(f"{number:06d} {number:08d} the of" for number in range(100)),
    ("gopher", "stop words"): " ".join(f"wort{number} haus garten baum" for number in range(60)),
    ("repetition", "paragraphs occurred"): "\n\n".join([prose(), *[_SENTENCE] * 8]),
    ("repetition", "lines"): "\n".join([prose(), *[_SENTENCE] * 8]),
    ("repetition", "commonest 2 words"): " ".join(f"buy now thing{number}" for number in range(200)),
    ("repetition", "that occurred before hold"): " ".join(f"{_SENTENCE} {number}" for number in range(12)),
    ("fineweb", "end like a sentence"): prose().replace(".", ""),
    ("fineweb", "are short"): "\n".join(["A short line.", *[f"Another one, {number}." for number in range(30)]]),
    ("fineweb", "occurred before"): "\n".join([prose(), prose().split("\n")[0]]),
    ("fineweb", "lines for each word"): prose() + "\n" * 200,
    ("blocklist", "holds 'bridge'"): prose(),
}


@pytest.mark.parametrize(("rule", "why"), BAD, ids=[f"{rule}, {why}" for rule, why in BAD])
def test_a_rule_drops_what_it_names(rule: str, why: str) -> None:
    limits: dict[str, Any] = {"blocklist": ["bridge"]} if rule == "blocklist" else {rule: {}}
    found, said = broken_rule(BAD[rule, why], Rules.model_validate(limits))
    assert found == rule
    assert why in said
    assert broken_rule(BAD[rule, why], Rules()) == ("", "")


@pytest.mark.parametrize("seed", range(5))
def test_good_prose_passes_every_rule(seed: int) -> None:
    rules = Rules.model_validate({**EVERY, "blocklist": ["bridg", "the town meets"]})
    assert c4_lines(prose(seed), C4())[1] == ""
    assert broken_rule(prose(seed), rules) == ("", "")


def test_c4_drops_lines_and_then_documents() -> None:
    lines = [
        "Home | About | Contact",
        prose().split("\n")[0],
        "Please enable Javascript to see this page.",
        "Read our privacy policy before you go on here.",
        "Too short.",
        "And so it goes on and on...",
        *prose().split("\n")[1:],
    ]
    text, why = c4_lines("\n".join(lines), C4())
    assert (text, why) == (prose(), "")
    assert c4_lines("\n".join(lines[:3]), C4())[1] == "3 sentences are left"
    assert c4_lines(prose() + "\nLorem ipsum dolor.", C4())[1] == "lorem ipsum"
    assert c4_lines(prose() + "\nfunction() { }", C4())[1] == "a curly bracket"


LANGUAGES = {
    "en": "The house stood at the end of a long road, and nobody had lived there for many years.",
    "de": "Das Haus stand am Ende einer langen Straße, und seit vielen Jahren hatte dort niemand gewohnt.",
    "fr": "La maison se trouvait au bout d'une longue route, et personne n'y avait habité depuis des années.",
    "zh": "今天开会讨论了新的计划，大家都觉得这个办法很好，明天开始执行。",
    "hi": "राम घर गया और उसने अपनी माँ से कहा कि आज वह बहुत खुश है।",
    "th": "ภาษาไทยเป็นภาษาที่มีระดับเสียงของคำแน่นอน หรือวรรณยุกต์เช่นเดียวกับภาษาจีน",
}


@pytest.mark.parametrize(("language", "text"), LANGUAGES.items())
def test_languages_are_told(language: str, text: str) -> None:
    assert language_of(text * 3, 0.65) == language


@pytest.mark.parametrize("text", ["", "1234 5678", "ok", "!!! ???", "def f(x): return x"])
def test_what_says_little_has_no_language(text: str) -> None:
    assert language_of(text, 0.65) == "unknown"


def reasons(texts: dict[str, str], rules: dict[str, Any], licence: str | None = None) -> dict[str, str | None]:
    section = CorpusSection(min_characters=0, min_letters=0, rules=Rules.model_validate(rules))
    return {path: clean("web", path, text, section, licence).pieces[0].reason for path, text in texts.items()}


def test_only_prose_is_asked() -> None:
    texts = {"a.txt": "x = 1\n" * 40, "b.py": "x = 1\n" * 40}
    assert reasons(texts, {"gopher": {}}) == {"a.txt": "low quality", "b.py": None}
    assert reasons(texts, {"gopher": {}, "sources": ["books"]}) == {"a.txt": None, "b.py": None}
    kept = {"keep": ["en"], "unknown": "keep"}
    assert reasons({"a.txt": "12", "d.txt": LANGUAGES["de"]}, {"languages": kept}) == {
        "a.txt": None,
        "d.txt": "language",
    }
    assert reasons({"a.txt": "12"}, {"languages": {"keep": ["en"]}}) == {"a.txt": "language"}
    assert reasons({"b.py": "x = 1"}, {"licences": ["MIT"]}, "GPL-3.0") == {"b.py": "licence"}
    assert reasons({"b.py": "x = 1"}, {"licences": ["MIT"]}, "MIT") == {"b.py": None}
    assert reasons({"b.py": "x = 1"}, {"licences": ["MIT"]}) == {"b.py": "licence"}


def test_a_document_is_known_by_the_text_that_is_kept() -> None:
    section = CorpusSection(rules=Rules(c4=C4()), scrub=("email",))
    plain = clean("web", "a.txt", prose(), section).pieces[0]
    other = clean("web", "b.txt", f"Home | About\n{prose()}", section).pieces[0]
    assert (plain.id, plain.document) == (other.id, other.document)


def test_a_rule_that_nobody_asked_for_changes_no_identity() -> None:
    before = digest_of(CorpusSection())
    assert digest_of(CorpusSection(rules=None, scrub=())) == before
    assert "rules" not in CorpusSection().model_dump() and "scrub" not in CorpusSection().identity_fields()
    assert digest_of(CorpusSection(rules=Rules())) != before
    with pytest.raises(ValidationError, match="gofer"):
        CorpusSection.model_validate({"rules": {"gofer": {}}})
