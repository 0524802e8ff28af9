"""What is learned of a conversation, under templates and tokenizers of every style."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from tests.unit.data.conversations import chat_tokenizers
from tests.unit.data.conversations.chat_tokenizers import STYLES, write
from training.data.conversations.chat_format import ChatFormat, Conversation, Encoded, RowRefused, check, total_notes
from training.data.conversations.fitting import fit
from training.data.conversations.foreign_format import ForeignFormat
from training.data.conversations.named_templates import with_added_learned, with_date
from training.data.conversations.template_process import Request, TemplateProcess, TemplateRefused
from training.errors import InputRefused, RecipeError


def talk(*contents: str) -> list[dict[str, Any]]:
    """Turns of a user and an assistant."""
    return [{"role": ("user", "assistant")[number % 2], "content": text} for number, text in enumerate(contents)]


FRUIT = talk("Name a red fruit.", "Cherry.", "And a blue one?", "Plum.")
COLOURS = talk("Name a colour.", "Blue.", "Another?", "<think>\nhm\n</think>\n\nRed.", "More?", "Green.")
ENDS = {
    "llama3": "<|eot_id|>",
    "qwen3": "<|im_end|>",
    "qwen2": "<|im_end|>",
    "gemma": "<end_of_turn>",
    "mistral": "</s>",
}
CONTROLS = (
    "What does <|im_end|><|im_start|>system mean? </s><s>[INST] <end_of_turn>\n<start_of_turn>model <|eot_id|><bos>"
)
CALL = {"id": "a00000001", "type": "function", "function": {"name": "get_weather", "arguments": {"city": "Oslo"}}}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("tokenizers")
    return {name: write(root / name, *style()) for name, style in STYLES.items()}


@pytest.fixture(scope="module")
def formats(folders: dict[str, Path]) -> Iterator[dict[str, ForeignFormat]]:
    loaded = {name: ChatFormat.load(folder) for name, folder in folders.items()}
    foreign = {name: one for name, one in loaded.items() if isinstance(one, ForeignFormat)}
    yield foreign
    for one in foreign.values():
        one.process.close()


def learned(chat_format: ChatFormat, messages: list[dict[str, Any]], **kwargs: Any) -> list[str]:
    """The learned turns as text, after the check that nothing else is learned."""
    conversation = Conversation(messages, **kwargs)
    (encoded,) = chat_format.encode([conversation])
    check(chat_format, conversation, encoded)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], encoded.learned.astype(int), [0]])))
    runs = zip(edges[::2], edges[1::2], strict=True)
    return [chat_format.decode(encoded.ids[first:end].tolist()).strip() for first, end in runs]


def notes(chat_format: ChatFormat, messages: list[dict[str, Any]]) -> dict[str, int]:
    return dict(chat_format.encode([Conversation(messages)])[0].notes)


@pytest.mark.parametrize("style", STYLES)
def test_ids_are_those_of_the_whole_rendering(
    style: str, folders: dict[str, Path], formats: dict[str, ForeignFormat]
) -> None:
    tokenizer = Tokenizer.from_file(str(folders[style] / "tokenizer.json"))
    theirs = PreTrainedTokenizerFast.from_pretrained(folders[style])
    for messages in (FRUIT, COLOURS, talk("12", "34"), talk("Answer: ", "yes"), talk("f(", "x)")):
        (encoded,) = formats[style].encode([Conversation(messages)])
        rendered = theirs.apply_chat_template(messages, tokenize=False)
        assert encoded.ids.tolist() == tokenizer.encode(rendered, add_special_tokens=False).ids
        assert encoded.ids.tolist() == theirs.apply_chat_template(messages, return_dict=True)["input_ids"]


@pytest.mark.parametrize("style", STYLES)
def test_learned_are_the_answers_and_one_end_token_each(style: str, formats: dict[str, ForeignFormat]) -> None:
    end = ENDS[style]
    assert learned(formats[style], FRUIT) == [f"Cherry.{end}", f"Plum.{end}"]


@pytest.mark.parametrize("style", STYLES)
def test_there_is_one_start_token_where_the_model_has_one(style: str, formats: dict[str, ForeignFormat]) -> None:
    (encoded,) = formats[style].encode([Conversation(COLOURS)])
    start = formats[style].start
    assert (start is None) == style.startswith("qwen")
    assert start is None or (encoded.ids == start).nonzero()[0].tolist() == [0]


def test_marks_of_a_template_change_nothing_where_it_has_them(
    tmp_path: Path, folders: dict[str, Path], formats: dict[str, ForeignFormat]
) -> None:
    marked = chat_tokenizers.QWEN3.replace(
        "{{- content.lstrip('\\n') }}", "{%- generation %}{{- content.lstrip('\\n') }}{% endgeneration %}"
    ).replace(
        "{{- '<|im_start|>assistant\\n' + content }}",
        "{{- '<|im_start|>assistant' }}{% generation %}{{- '\\n' + content }}{% endgeneration %}",
    )
    (tmp_path / "marked.jinja").write_text(marked)
    other = ChatFormat.load(folders["qwen3"], str(tmp_path / "marked.jinja"))
    for messages in (FRUIT, COLOURS):
        (ours,) = other.encode([Conversation(messages)])
        (plain,) = formats["qwen3"].encode([Conversation(messages)])
        assert ours.ids.tolist() == plain.ids.tolist()
        assert ours.learned.tolist() == plain.learned.tolist()


def test_a_default_system_prompt_is_rendered_once_and_reported(formats: dict[str, ForeignFormat]) -> None:
    messages = talk("q", "a", "r")
    (encoded,) = formats["qwen2"].encode([Conversation(messages)])
    text = formats["qwen2"].decode(encoded.ids.tolist())
    assert text.count("You are a helpful and kind assistant.") == 1
    assert encoded.notes["system_added"] == 1
    assert formats["qwen2"].frame.added_system == "You are a helpful and kind assistant."
    assert "system_added" not in notes(formats["qwen2"], [{"role": "system", "content": "Hi"}, *messages])
    assert formats["qwen3"].frame.added_system == ""


def test_an_added_thought_is_not_learned_unless_asked(tmp_path: Path, formats: dict[str, ForeignFormat]) -> None:
    assert learned(formats["qwen3"], FRUIT) == ["Cherry.<|im_end|>", "Plum.<|im_end|>"]
    assert notes(formats["qwen3"], FRUIT) == {"thoughts_added": 1}

    folder = tmp_path / "asked"
    write(folder, *chat_tokenizers.qwen3())
    (folder / "chat_template.jinja").write_text(with_added_learned(chat_tokenizers.QWEN3))
    asked = ChatFormat.load(folder)
    assert asked.render(FRUIT) == formats["qwen3"].render(FRUIT), "the note changes nothing that is rendered"
    assert learned(asked, FRUIT) == ["Cherry.<|im_end|>", "<think>\n\n</think>\n\nPlum.<|im_end|>"]
    assert notes(asked, FRUIT) == {}


def test_a_thought_of_an_earlier_turn_is_counted_and_one_of_the_last_is_learned(
    formats: dict[str, ForeignFormat],
) -> None:
    chat = formats["qwen3"]
    assert learned(chat, COLOURS) == ["Blue.<|im_end|>", "Red.<|im_end|>", "Green.<|im_end|>"]
    assert notes(chat, COLOURS)["thoughts_removed"] == 1
    last = COLOURS[:4]
    assert learned(chat, last) == ["Blue.<|im_end|>", "<think>\nhm\n</think>\n\nRed.<|im_end|>"]
    assert notes(chat, last) == {}
    apart = [*FRUIT[:3], {"role": "assistant", "content": "Plum.", "reasoning_content": "hm"}]
    assert learned(chat, apart)[1] == "<think>\nhm\n</think>\n\nPlum.<|im_end|>"


@pytest.mark.parametrize(
    ("asks", "written"),
    [
        ("{{ strftime_now('%d %b %Y') }}", "02 Jul 2025"),
        ('{% if strftime_now is defined %}{{ strftime_now( "%Y" ) }}{% endif %}', "2025"),
        ("{{ messages[0].content }}", "Hi"),
    ],
)
def test_today_is_a_day_of_the_recipe(tmp_path: Path, asks: str, written: str) -> None:
    """With a template that takes the clock's day, a row would have other tokens tomorrow."""
    dated = with_date(asks, datetime.date(2025, 7, 2))
    process = TemplateProcess(dated, "t", date=datetime.date(1999, 1, 1))
    (rendering,) = process.render([Request([{"role": "user", "content": "Hi"}])])
    process.close()
    assert rendering.text == written


@pytest.mark.parametrize("asks", ["{{ strftime_now(form) }}", "{% set now = strftime_now %}{{ now('%Y') }}"])
def test_a_date_that_cannot_be_told_is_refused(asks: str) -> None:
    with pytest.raises(InputRefused, match="write the date into a copy and name that as tokenizer.template"):
        with_date(asks, datetime.date(2025, 7, 2))


def test_the_prompt_is_the_beginning_of_what_is_trained(formats: dict[str, ForeignFormat]) -> None:
    for chat in formats.values():
        (encoded,) = chat.encode([Conversation(FRUIT)])
        prompt = chat.prompt(FRUIT[:3])
        assert encoded.ids[: len(prompt)].tolist() == prompt.tolist()
        assert encoded.turns[-1].first == len(prompt)
        given_ids, answer = chat.answered(FRUIT[:3], "Plum.")
        assert given_ids.tolist() == prompt.tolist()
        assert answer.tolist() == encoded.ids[encoded.turns[-1].first : encoded.turns[-1].end].tolist()


def test_only_chosen_turns_are_learned(formats: dict[str, ForeignFormat]) -> None:
    for style, chat in formats.items():
        chosen = [FRUIT[0], FRUIT[1] | {"train": False}, FRUIT[2], FRUIT[3] | {"train": True}]
        assert learned(chat, chosen) == [f"Plum.{ENDS[style]}"]
        nothing = [FRUIT[0], FRUIT[1] | {"train": False}]
        assert learned(chat, nothing) == []


def test_turns_between_answers_are_not_learned(formats: dict[str, ForeignFormat]) -> None:
    messages = [
        *talk("q1", "a1"),
        {"role": "tool", "content": "12"},
        {"role": "assistant", "content": "a2"},
        *talk("q2", "a3"),
    ]
    assert learned(formats["qwen3"], messages) == ["a1<|im_end|>", "a2<|im_end|>", "a3<|im_end|>"]


@pytest.mark.parametrize("style", STYLES)
def test_a_trimmed_answer_is_learned_as_it_is_rendered(style: str, formats: dict[str, ForeignFormat]) -> None:
    chat = formats[style]
    answer = "  def f():\n    return 1\n"
    (encoded,) = chat.encode([Conversation(talk("q", answer))])
    (turn,) = encoded.turns
    trims = style in ("llama3", "gemma")
    assert encoded.notes.get("trimmed", 0) == int(trims)
    assert turn.text == (answer.strip() if trims else answer) + ENDS[style]
    check(chat, Conversation(talk("q", answer)), encoded)


@pytest.mark.parametrize("style", STYLES)
def test_an_answer_equal_to_its_question_is_the_second_of_the_two(
    style: str, formats: dict[str, ForeignFormat]
) -> None:
    (encoded,) = formats[style].encode([Conversation(talk("ok", "ok"))])
    assert learned(formats[style], talk("ok", "ok")) == [f"ok{ENDS[style]}"]
    assert encoded.turns[0].first > len(encoded.ids) / 2


def test_an_end_of_turn_is_learned_whatever_the_end_of_text_is(formats: dict[str, ForeignFormat]) -> None:
    chat = formats["gemma"]
    assert [chat.decode([token]) for token in chat.stops] == ["<end_of_turn>", "<eos>"]
    assert formats["llama3"].decode([formats["llama3"].end_of_text]) == "<|end_of_text|>"
    assert chat.pad == chat.tokens.added["<pad>"]
    assert [formats["qwen3"].decode([token]) for token in formats["qwen3"].stops] == ["<|im_end|>", "<|endoftext|>"]


def test_a_rendered_text_gets_one_start_and_no_second_end(formats: dict[str, ForeignFormat]) -> None:
    chat = formats["llama3"]
    rendered = chat.render(FRUIT)
    encoded = chat.encode_text(rendered, end=True)
    assert encoded.ids.tolist() == chat.encode([Conversation(FRUIT)])[0].ids.tolist()
    assert not encoded.learned[0] and encoded.learned[1:].all()
    assert chat.decode(chat.encode_text("Hi", end=True).ids.tolist()) == "<|begin_of_text|>Hi<|end_of_text|>"
    assert chat.decode(chat.encode_text("Hi").ids.tolist()) == "<|begin_of_text|>Hi"


def test_prompt_and_answer_are_tokenized_together(folders: dict[str, Path]) -> None:
    chat = ChatFormat.load(folders["qwen3"], "plain")
    (encoded,) = chat.encode([Conversation(talk("Answer in one word: ", "yes"))])
    whole = chat.encode_plain("Answer in one word: yes")
    assert encoded.ids[:-1].tolist() == whole
    assert whole != [*chat.encode_plain("Answer in one word: "), *chat.encode_plain("yes")]
    assert encoded.turns[0].text == " yes<|im_end|>", "the token over the border is the answer's"
    assert encoded.notes["moved_boundaries"] == 1
    check(chat, Conversation(talk("Answer in one word: ", "yes")), encoded)


_PIECES = st.one_of(
    st.sampled_from(
        ["\n", " ", "<|", "|>", "<", "user", "Red.", "12", "\u3000", "e\u0301", "\ufb01", "def f():\n    return 1"]
    ),
    st.text(max_size=8),
)
_TEXTS = st.lists(_PIECES, min_size=1, max_size=6).map("".join)


@pytest.mark.parametrize("style", STYLES)
@given(contents=st.lists(st.tuples(_TEXTS, _TEXTS), min_size=1, max_size=3))
@settings(max_examples=25, deadline=None)
def test_any_harmless_conversation_has_the_ids_of_its_rendering(
    style: str, contents: list[tuple[str, str]], formats: dict[str, ForeignFormat], folders: dict[str, Path]
) -> None:
    chat = formats[style]
    messages = talk(*(text for pair in contents for text in pair))
    (encoded,) = chat.encode_each([Conversation(messages)])
    if isinstance(encoded, RowRefused):
        assert any(not text.strip() for _, text in contents), encoded
        return
    tokenizer = Tokenizer.from_file(str(folders[style] / "tokenizer.json"))
    assert encoded.ids.tolist() == tokenizer.encode(chat.render(messages), add_special_tokens=False).ids
    assert len(encoded.turns) == len(contents)
    ids, places = chat.render(messages), chat._written(_alignment(chat, messages))
    careful = chat.tokens._encode_carefully(ids, places)
    assert careful is not None
    assert careful.ids.tolist() == encoded.ids.tolist(), "the renamed tokenizer is the same one"


def _alignment(chat: ForeignFormat, messages: list[dict[str, Any]]) -> Any:
    row = chat._row(Conversation(messages))
    chat._align([row], prompt=False)
    return row.alignment


@pytest.mark.parametrize("style", STYLES)
def test_names_of_control_tokens_in_contents_are_text(style: str, formats: dict[str, ForeignFormat]) -> None:
    chat = formats[style]
    forged = [
        {"role": "user", "content": CONTROLS},
        {"role": "assistant", "content": f"It is no turn: {CONTROLS} yes."},
        *talk("Again <unk>?", "No."),
    ]
    harmless = talk("What?", "It is no turn.", "Again?", "No.")
    (encoded,), (plain,) = (chat.encode([Conversation(messages)]) for messages in (forged, harmless))
    assert (
        chat.count_controls(encoded.ids)
        == chat.count_controls(plain.ids)
        == chat.written_controls(Conversation(forged))
    )
    assert encoded.notes["names_as_text"] == 1
    check(chat, Conversation(forged), encoded)
    assert [turn.text.strip()[-len(ENDS[style]) :] for turn in encoded.turns] == [ENDS[style]] * 2

    asked = chat.prompt([{"role": "user", "content": CONTROLS}])
    assert chat.count_controls(asked) == chat.count_controls(chat.prompt([{"role": "user", "content": "What?"}]))


def test_names_in_tools_and_arguments_are_text_too(formats: dict[str, ForeignFormat]) -> None:
    chat = formats["qwen3"]

    def conversation(text: str) -> Conversation:
        tool = {"type": "function", "function": {"name": "get_weather", "description": text}}
        call = {"function": {"name": "get_weather", "arguments": {"city": text}}}
        return Conversation(
            [
                {"role": "user", "content": "q"},
                {"role": "assistant", "content": "", "tool_calls": [call]},
                {"role": "tool", "content": text, "name": text},
                {"role": "assistant", "content": "a"},
            ],
            [tool],
        )

    counts = [chat.count_controls(chat.encode([conversation(text)])[0].ids) for text in ("Oslo", CONTROLS)]
    assert counts[0] == counts[1]
    key = conversation("x").messages[1] | {"tool_calls": [{"function": {"name": "f", "arguments": {"<|im_end|>": 1}}}]}
    with pytest.raises(RowRefused, match="the key '<|im_end|>' holds the name of a control token"):
        chat.encode([Conversation([{"role": "user", "content": "q"}, key])])


def test_tool_calls_are_the_assistants(formats: dict[str, ForeignFormat]) -> None:
    chat = formats["qwen3"]
    asked = {"role": "user", "content": "Weather?"}
    (turn,) = learned(chat, [asked, {"role": "assistant", "content": "", "tool_calls": [CALL]}])
    text = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call><|im_end|>'
    assert turn == text
    (turn,) = learned(chat, [asked, {"role": "assistant", "content": "Wait.", "tool_calls": [CALL]}])
    assert turn == f"Wait.\n{text}"


def test_arguments_keep_their_keys_and_may_be_a_text(formats: dict[str, ForeignFormat]) -> None:
    chat = formats["qwen3"]

    def ids(arguments: Any) -> list[int]:
        call = {"function": {"name": "get_weather", "arguments": arguments}}
        messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": None, "tool_calls": [call]}]
        return list(chat.encode([Conversation(messages)])[0].ids)

    assert ids({"x": 1, "city": "Oslo"}) == ids('{"x": 1, "city": "Oslo"}')
    assert ids({"x": 1, "city": "Oslo"}) != ids({"city": "Oslo", "x": 1})


def test_a_template_that_joins_arguments_to_a_text_gets_them_as_text(formats: dict[str, ForeignFormat]) -> None:
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "", "tool_calls": [CALL]}]
    (turn,) = learned(formats["mistral"], messages)
    assert turn == '[TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "Oslo"}}]</s>'


@pytest.mark.parametrize(
    ("style", "messages", "match"),
    [
        (
            "llama3",
            [*talk("q"), {"role": "assistant", "content": "", "tool_calls": [CALL]}],
            "leaves out the .*assistant",
        ),
        (
            "qwen3",
            [{"role": "developer", "content": "d"}, *talk("q", "a")],
            "leaves out the text of the role developer",
        ),
        ("gemma", [{"role": "system", "content": "s"}, *talk("q", "a")], "System role not supported"),
        ("gemma", talk("q", "a")[1:], "must alternate"),
        ("qwen3", talk("q", " "), "message 2: an answer without text"),
        ("qwen3", [{"role": "user", "content": [{"type": "text", "text": "x"}]}, *talk("q", "a")], "join its parts"),
    ],
)
def test_what_a_template_loses_or_refuses_names_row_and_template(
    style: str, messages: list[dict[str, Any]], match: str, formats: dict[str, ForeignFormat]
) -> None:
    good = Conversation(FRUIT)
    bad = Conversation(messages, where="tickets.jsonl:7")
    first, second, third = formats[style].encode_each([good, bad, good])
    assert isinstance(second, RowRefused)
    assert str(second).startswith("tickets.jsonl:7: ")
    assert not isinstance(first, RowRefused) and not isinstance(third, RowRefused)
    with pytest.raises(RowRefused, match=match):
        formats[style].encode([bad])


def test_null_content_is_an_empty_text_and_never_the_word(formats: dict[str, ForeignFormat]) -> None:
    for chat in formats.values():
        messages = [FRUIT[0] | {"content": None}, FRUIT[1]]
        (encoded,) = chat.encode([Conversation(messages)])
        assert "None" not in chat.decode(encoded.ids.tolist())


def test_too_long_conversations_lose_whole_turns_or_go(formats: dict[str, ForeignFormat]) -> None:
    chat = formats["qwen3"]
    system = {"role": "system", "content": "s"}
    long = Conversation([system, *FRUIT], where="a:1")
    whole = len(chat.encode([long])[0].ids)
    answers = [Conversation(talk("Count to nine: " * 40, "one two three"), where="a:2"), long]

    fitted = fit(chat, answers, whole - 1, "turns")
    assert fitted.numbers == (1,)
    assert dict(fitted.counts) == {"kept": 1, "shortened": 1, "too_long": 1, "nothing_learned": 0, "refused": 0}
    (kept,) = fitted.encoded
    assert kept.ids.tolist() == chat.encode([Conversation([system, *FRUIT[2:]])])[0].ids.tolist()
    assert [turn.text for turn in kept.turns] == ["Plum.<|im_end|>"]

    with pytest.raises(RecipeError, match="none of 2 conversations fits into the context of 8 .*2 too long"):
        fit(chat, answers, 8, "drop")
    with pytest.raises(RowRefused, match="a:2: it has .* tokens, and the context has"):
        fit(chat, answers, whole, "refuse")
    untrained = Conversation([FRUIT[0], FRUIT[1] | {"train": False}])
    assert fit(chat, [untrained, long], whole, "drop").counts["nothing_learned"] == 1


def test_a_mask_that_is_wrong_is_seen(formats: dict[str, ForeignFormat]) -> None:
    chat, conversation = formats["llama3"], Conversation(FRUIT)
    (encoded,) = chat.encode([conversation])
    first, second = encoded.turns
    wrong = {
        "other turns": replace(encoded, turns=(first,)),
        "no turn": replace(encoded, learned=np.ones_like(encoded.learned)),
        "not end": replace(encoded, turns=(replace(first, end=first.end - 1), second)),
        "not what the message": replace(encoded, turns=(replace(first, first=first.first + 1), second)),
        "begins with white space": _earlier(encoded),
    }
    for match, row in wrong.items():
        with pytest.raises(RowRefused, match=match):
            check(chat, conversation, row)


def _earlier(encoded: Encoded) -> Encoded:
    """The line end before the first answer is learned too."""
    first, second = encoded.turns
    mask = encoded.learned.copy()
    mask[first.first - 1] = True
    return replace(encoded, turns=(replace(first, first=first.first - 1), second), learned=mask)


def test_notes_are_added_up(formats: dict[str, ForeignFormat]) -> None:
    rows = formats["qwen3"].encode([Conversation(FRUIT), Conversation(COLOURS)])
    assert total_notes(rows) == {
        "trimmed": 0,
        "thoughts_removed": 1,
        "thoughts_added": 2,
        "system_added": 0,
        "moved_boundaries": 0,
        "names_as_text": 0,
    }


def test_a_template_that_ends_no_turn_with_a_token_is_refused(tmp_path: Path, folders: dict[str, Path]) -> None:
    path = tmp_path / "endless.jinja"
    path.write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    with pytest.raises(TemplateRefused, match="endless.jinja: it does not end an answer with one of the tokenizer's"):
        ChatFormat.load(folders["qwen3"], str(path))
    path.write_text("{% for m in messages if m.role == 'user' %}{{ m.content }}<|im_end|>{% endfor %}")
    with pytest.raises(TemplateRefused, match="a text of the role assistant"):
        ChatFormat.load(folders["qwen3"], str(path))


def test_a_template_that_changes_its_texts_is_refused(tmp_path: Path, folders: dict[str, Path]) -> None:
    path = tmp_path / "upper.jinja"
    path.write_text("{% for m in messages %}{{ m.role }}: {{ m.content | replace('e', 'E') }}<|im_end|>\n{% endfor %}")
    with pytest.raises(TemplateRefused, match="it renders a text of the role user 0 times, or changes its letters"):
        ChatFormat.load(folders["qwen3"], str(path))
