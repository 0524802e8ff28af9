"""A chat with a model of few positions: what is left out is said, and no input ends in a traceback."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from training import chat
from training.data.conversations.chat_template import encode_conversation
from training.errors import UserError
from training.specs.tokenizer import END_OF_TEXT, END_OF_TURN

POSITIONS = 128
QUESTION = "What is the colour of the hat of Anna?"


@pytest.fixture
def folder(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Path:
    """GPT-2 with 128 positions."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer),
            n_embd=32,
            n_layer=1,
            n_head=2,
            n_positions=POSITIONS,
            bos_token_id=0,
            eos_token_id=0,
        )
    )

    ends = [int(tokenizer.convert_tokens_to_ids(token)) for token in (END_OF_TURN, END_OF_TEXT)]
    model.generation_config = GenerationConfig(eos_token_id=ends, pad_token_id=tokenizer.pad_token_id)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def talk(folder: Path, text: bytes, monkeypatch: pytest.MonkeyPatch) -> int:
    """A conversation on a terminal whose bytes Python takes as they come, as in the locale C."""
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text), "utf-8", "surrogateescape"))
    return chat.main([str(folder)])


def test_a_long_talk_leaves_out_its_oldest_turns_and_says_so(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[int] = []
    generate = GPT2LMHeadModel.generate

    def watch(model: GPT2LMHeadModel, ids: torch.Tensor, **settings: object) -> torch.Tensor:
        asked.append(ids.shape[1])
        answer: torch.Tensor = generate(model, ids, **settings)
        assert answer.shape[1] <= POSITIONS
        return answer

    monkeypatch.setattr(GPT2LMHeadModel, "generate", watch)

    assert talk(folder, f"{QUESTION}\n".encode() * 8, monkeypatch) == 0

    output = capsys.readouterr()
    assert len(asked) == 8
    assert max(asked) <= POSITIONS * 3 // 4
    assert "the model reads at most 96 tokens: the oldest 1 of 1 questions and answers are left out" in output.err


def test_the_newest_turns_stay(folder: Path) -> None:
    from training.model_folder import load_model
    from training.tokenizer_folder import load_tokenizer

    conversation = chat.Conversation(load_model(folder), load_tokenizer(folder))
    turns = [(f"Number {number}?", f"It is {number}.") for number in range(12)]
    conversation.messages = [
        {"role": role, "content": text}
        for turn in turns
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ]
    conversation.ask("Which?")

    kept = [message["content"] for message in conversation.messages if message["role"] == "user"]
    assert kept[-1] == "Which?"
    assert kept[:-1] == [question for question, _ in turns][-len(kept) + 1 :]
    assert 2 < len(kept) < 12
    shown = conversation.messages[:-1]
    assert len(encode_conversation(conversation.tokenizer, shown, True)[0]) <= 96
    assert conversation.messages[0]["role"] == "user"


def test_a_question_that_does_not_fit_is_refused_in_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    long = "word " * 300

    assert chat.main([str(folder), long]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: the question has ")
    assert error.endswith("the model reads at most 96 of them: shorten it\n")
    assert error.count("\n") == 1

    assert talk(folder, f"{long}\n{QUESTION}\n".encode(), monkeypatch) == 0, "the talk goes on"
    output = capsys.readouterr()
    assert output.err.count("error: the question has") == 1
    assert output.out.count("> ") == 3


@pytest.mark.parametrize("end", [b"quit\n", b" EXIT \n", b""])
def test_a_talk_ends(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], end: bytes
) -> None:
    monkeypatch.setattr(chat.Conversation, "ask", lambda self, question: f"heard {question}")

    assert talk(folder, b"\n   \nHello\n" + end + b"More\n" * bool(end), monkeypatch) == 0

    output = capsys.readouterr().out
    assert output.startswith("Ask something; quit or exit or Ctrl-D ends.\n")
    assert output.count("heard") == 1, "an empty line is no question, and nothing is asked after the end"
    assert "heard Hello" in output


def test_bytes_that_are_not_utf8_are_replaced(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    heard: list[str] = []

    def ask(self: chat.Conversation, question: str) -> str:
        heard.append(question)
        return "yes"

    monkeypatch.setattr(chat.Conversation, "ask", ask)
    assert chat.main([str(folder), b"caf\xe9?".decode("utf-8", "surrogateescape")]) == 0
    assert talk(folder, b"caf\xe9?\ncaf\xc3\xa9?\n", monkeypatch) == 0
    assert heard == ["caf\ufffd?", "caf\ufffd?", "caf\u00e9?"]


def test_a_replaced_byte_is_answered(folder: Path) -> None:
    assert chat.main([str(folder), b"caf\xe9?".decode("utf-8", "surrogateescape")]) == 0


def test_an_empty_question_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert chat.main([str(folder), "  "]) == 2
    assert capsys.readouterr().err == "error: the question is empty\n"


def test_a_refused_question_leaves_no_trace(folder: Path) -> None:
    from training.model_folder import load_model
    from training.tokenizer_folder import load_tokenizer

    conversation = chat.Conversation(load_model(folder), load_tokenizer(folder))
    assert conversation.limit == 96
    with pytest.raises(UserError, match="shorten it"):
        conversation.ask("word " * 100)
    assert conversation.messages == []
