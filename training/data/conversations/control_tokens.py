"""Token ids of rendered conversations: a control token is what the template wrote, and a name in a content is text."""

from __future__ import annotations

import copy
import json
import re
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from training.data.tokens.shards import Int64
from training.errors import InputRefused


@dataclass(frozen=True)
class Place:
    """Where the template wrote a control token: its id, its first character and the one after its last."""

    id: int
    start: int
    end: int


@dataclass(frozen=True)
class TokenRow:
    """A tokenized text.

    Attributes:
        ids: int64 [length].
        starts: First character of each token, int64 [length].
        ends: The character after its last, int64 [length].
        names_as_text: Whether the text holds names of control tokens that are text.
    """

    ids: Int64
    starts: Int64
    ends: Int64
    names_as_text: bool = False


class ControlTokens:
    """A tokenizer that knows which of its added tokens open and close turns.

    A text whose control tokens are just those of the template is tokenized as it is. In any other, a second tokenizer
    takes over. It is the same one, but for the names of its control tokens, which nobody can guess. The template's
    control tokens get these names, so those in the contents are text like any other, and all other rules still hold.
    """

    def __init__(self, content: dict[str, Any]) -> None:
        """
        Args:
            content: Of a tokenizer.json.
        """
        self._content = content | {"post_processor": None, "truncation": None, "padding": None}
        self.tokenizer = Tokenizer.from_str(json.dumps(self._content))
        added = {token["content"]: token for token in content["added_tokens"]}
        self.added = {name: int(token["id"]) for name, token in added.items()}
        self.unknown = _unknown_of(content["model"])
        self._name(name for name, token in added.items() if token["special"])

    def with_more(self, names: Iterable[str]) -> ControlTokens:
        """The same, with more of the added tokens as control tokens besides those that the tokenizer calls special."""
        other = copy.copy(self)
        other._name([*self.ids, *names])
        return other

    def _name(self, names: Iterable[str]) -> None:
        self.ids = {name: self.added[name] for name in sorted(set(names))}
        self.pattern = _pattern(self.ids)

    def places(self, text: str, start: int, end: int) -> list[Place]:
        """The control tokens whose names stand in a part of a text."""
        matches = self.pattern.finditer(text, start, end)
        return [Place(self.ids[match.group()], match.start(), match.end()) for match in matches]

    def encode(self, texts: Sequence[str], written: Sequence[Sequence[Place]]) -> list[TokenRow | None]:
        """Tokenize texts.

        Args:
            texts: Whole rendered conversations.
            written: The control tokens that the template wrote into each.

        Returns:
            None for a text that comes out with other control tokens.
        """
        encodings = self.tokenizer.encode_batch(list(texts), add_special_tokens=False)
        rows = [_row(encoding) for encoding in encodings]
        return [
            row if self._is_as_written(row, places, text) else self._encode_carefully(text, places)
            for row, places, text in zip(rows, written, texts, strict=True)
        ]

    def count(self, ids: Int64) -> int:
        """Number of control tokens."""
        return len(self._controls(ids))

    def _is_as_written(self, row: TokenRow, places: Sequence[Place], text: str) -> bool:
        if self._controls(row.ids) != [place.id for place in places if place.id != self.unknown]:
            return False
        unknown = next((name for name, token in self.ids.items() if token == self.unknown), "")
        return not unknown or unknown not in text

    def _controls(self, ids: Int64) -> list[int]:
        return [int(token) for token in ids[np.isin(ids, self._control_ids)]]

    @cached_property
    def _control_ids(self) -> Int64:
        return np.array([token for token in self.ids.values() if token != self.unknown], np.int64)

    def _encode_carefully(self, text: str, places: Sequence[Place]) -> TokenRow | None:
        tokenizer, names = self._renamed
        pieces: list[str] = []
        # Per piece: where it begins in the renamed text and in the text, for the way back.
        here, there = [0], [0]
        last = 0
        for place in places:
            for piece, end in ((text[last : place.start], place.start), (names[place.id], place.end)):
                pieces.append(piece)
                here.append(here[-1] + len(piece))
                there.append(end)
            last = place.end
        pieces.append(text[last:])

        row = _row(tokenizer.encode("".join(pieces), add_special_tokens=False))
        if self._controls(row.ids) != [place.id for place in places if place.id != self.unknown]:
            return None
        begins, targets = np.array(here), np.array(there)
        return TokenRow(
            row.ids,
            _carry(row.starts, begins, targets, "right"),
            _carry(row.ends, begins, targets, "left"),
            names_as_text=True,
        )

    @cached_property
    def _renamed(self) -> tuple[Tokenizer, dict[int, str]]:
        """The tokenizer with other names for its control tokens, and these names by id."""
        nonce = secrets.token_hex(12)
        names = {token: f"x{nonce}x{token}z" for token in self.ids.values()}
        new = {name: names[token] for name, token in self.ids.items()}
        model = dict(self._content["model"])
        added = [
            token | {"content": new.get(token["content"], token["content"])} for token in self._content["added_tokens"]
        ]
        content = self._content | {"added_tokens": added, "model": model}

        vocabulary = model["vocab"]
        if isinstance(vocabulary, dict):
            model["vocab"] = {new.get(text, text): number for text, number in vocabulary.items()}
            if "merges" in model:
                model["merges"] = [merge for merge in model["merges"] if _merged(merge) not in new]
        else:
            model["vocab"] = [[new.get(text, text), score] for text, score in vocabulary]
        if model.get("unk_token") in new:
            model["unk_token"] = new[model["unk_token"]]

        tokenizer = Tokenizer.from_str(json.dumps(content))
        wrong = [name for token, name in names.items() if tokenizer.token_to_id(name) != token]
        if wrong:
            raise InputRefused(
                "the tokenizer's added tokens change their ids when they are named otherwise, so names of control "
                "tokens in contents cannot be kept apart; use a tokenizer.json that lists its added tokens by id"
            )
        return tokenizer, names


def _row(encoding: Any) -> TokenRow:
    offsets = np.array(encoding.offsets, np.int64).reshape(-1, 2)
    return TokenRow(np.array(encoding.ids, np.int64), offsets[:, 0], offsets[:, 1])


def _carry(offsets: Int64, begins: Int64, targets: Int64, side: Any) -> Int64:
    """Places of the renamed text as places of the text."""
    piece = np.maximum(np.searchsorted(begins, offsets, side) - 1, 0)
    moved = targets[piece] + offsets - begins[piece]
    following = np.append(targets[1:], np.iinfo(np.int64).max)[piece]
    carried: Int64 = np.minimum(moved, following).astype(np.int64)
    return carried


def _pattern(names: Iterable[str]) -> re.Pattern[str]:
    longest_first = sorted(names, key=lambda name: (-len(name), name))
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def _merged(merge: Any) -> str:
    return "".join(merge.split(" ") if isinstance(merge, str) else merge)


def _unknown_of(model: dict[str, Any]) -> int | None:
    """Id of the token for what a tokenizer cannot spell; None where it has none."""
    if isinstance(model.get("unk_id"), int):
        return int(model["unk_id"])
    vocabulary, name = model.get("vocab"), model.get("unk_token")
    return int(vocabulary[name]) if isinstance(vocabulary, dict) and name in vocabulary else None
