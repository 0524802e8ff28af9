"""Generates texts in batches, and measures what needs no judge: whether a text ends, loops and reads like text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import torch
from transformers import DynamicCache

from training.data.text.words import words_of
from training.evaluation.models import LoadedModel, LoadFailed
from training.job.outcome import is_out_of_memory

_DIGIT = re.compile(r"\d")
_NGRAM = 4
_DISTINCT = 0.5  # of the 4-grams
_KNOWN_WORDS = 0.65  # of the words
_FEWEST_WORDS = 4
_LOOK = 16  # tokens between two looks for a stopping text: decoding takes time too


@dataclass(frozen=True)
class Sampling:
    """Draw the next token from the `top` likeliest ones at a temperature; the seed decides all draws."""

    seed: int
    temperature: float = 0.6
    top: int = 20


@dataclass(frozen=True)
class Completion:
    """A generated text.

    Attributes:
        tokens: What was generated, without the token that ended it.
        text: The tokens as text.
        stopped: The model ended the text; otherwise the limit did.
    """

    tokens: tuple[int, ...]
    text: str
    stopped: bool

    @property
    def clean(self) -> bool:
        """Whether the text ended by itself, says something, and does not loop."""
        return self.stopped and bool(self.text.strip()) and not loops(self.tokens) and "\ufffd" not in self.text


def loops(tokens: Sequence[int]) -> bool:
    """Whether a text repeats itself: fewer than half of its 4-grams are distinct, or of its tokens if it is short."""
    size = _NGRAM if len(tokens) >= 2 * _NGRAM else 1
    ngrams = [tuple(tokens[start : start + size]) for start in range(len(tokens) - size + 1)]
    return len(set(ngrams)) < _DISTINCT * len(ngrams)


def words(text: str) -> list[str]:
    """Words without digits, in lower case; characters in scripts that put no space between words."""
    return words_of(_DIGIT.sub(" ", text))


def readable(completion: Completion, vocabulary: AbstractSet[str]) -> bool:
    """Whether a continuation of plain text reads like text: the base model's stand-in for a clean answer.

    It holds at least four words and no bytes that are not UTF-8, 65% of its words are known, and it does not loop. The
    last word is left out where the limit may have cut it. Tokens drawn blindly join to words that nobody ever wrote.

    Args:
        completion: The continuation.
        vocabulary: Words of the held-out text, in lower case.
    """
    whole_words = words(completion.text)
    if not completion.stopped:
        whole_words = whole_words[:-1]
    known_words = sum(word in vocabulary for word in whole_words)
    return (
        len(whole_words) >= _FEWEST_WORDS
        and known_words >= _KNOWN_WORDS * len(whole_words)
        and not loops(completion.tokens)
        and "\ufffd" not in completion.text.rstrip("\ufffd")
    )


def generate(
    loaded: LoadedModel,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    batch: int,
    sampling: Sampling | None = None,
    until: Sequence[str] = (),
) -> list[Completion]:
    """Continue every prompt until the model stops or the limit is reached.

    Prompts of like length share a batch, padded on the left, with one key-value cache per batch.

    Args:
        loaded: The model.
        prompts: Token ids; none may be empty.
        max_new_tokens: The limit.
        batch: Most prompts at once.
        sampling: How to draw; None always takes the likeliest token.
        until: Stopping texts. A batch ends when each of its texts holds one; the completions are not cut there.

    Returns:
        One completion per prompt, in the same order.
    """
    generator = torch.Generator().manual_seed(sampling.seed) if sampling else None
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    results: dict[int, Completion] = {}
    for start in range(0, len(order), batch):
        indices = order[start : start + batch]
        rows = _decode(loaded, [prompts[i] for i in indices], max_new_tokens, sampling, generator, until)
        for index, tokens in zip(indices, rows, strict=True):
            results[index] = _completion(loaded, tokens)
    return [results[index] for index in range(len(prompts))]


def left_padded(loaded: LoadedModel, prompts: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask, int64 [prompts, longest], padded on the left."""
    longest = max(map(len, prompts))
    tokens = torch.full((len(prompts), longest), int(loaded.tokenizer.pad_token_id), dtype=torch.long)
    mask = torch.zeros_like(tokens)
    for row, prompt in enumerate(prompts):
        tokens[row, longest - len(prompt) :] = torch.tensor(list(prompt))
        mask[row, longest - len(prompt) :] = 1
    return tokens.to(loaded.device), mask.to(loaded.device)


@torch.inference_mode()
def _decode(
    loaded: LoadedModel,
    prompts: Sequence[Sequence[int]],
    limit: int,
    sampling: Sampling | None,
    generator: torch.Generator | None,
    until: Sequence[str],
) -> list[list[int]]:
    """Generated tokens of every prompt; what a row holds after its first stopping token means nothing."""
    tokens, mask = left_padded(loaded, prompts)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)  # padding on the left takes no position
    stops = torch.tensor(loaded.stops, device=loaded.device)
    cache = DynamicCache(config=loaded.model.config)
    done = torch.zeros(len(prompts), dtype=torch.bool, device=loaded.device)
    columns: list[torch.Tensor] = []

    for step in range(1, limit + 1):
        output = loaded.model(
            input_ids=tokens,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits = output.logits[:, -1, : loaded.used_rows].float()  # an embedding may have rows without a token
        chosen = _draw(logits, sampling, generator) if sampling and generator else logits.argmax(-1)
        columns.append(chosen)

        done |= torch.isin(chosen, stops)
        if until and step % _LOOK == 0:
            texts = [loaded.decode(row) for row in torch.stack(columns, dim=-1).tolist()]
            done |= torch.tensor([any(stop in text for stop in until) for text in texts], device=loaded.device)
        if bool(done.all()):
            break

        tokens, positions = chosen[:, None], positions[:, -1:] + 1
        mask = torch.cat([mask, mask.new_ones(len(prompts), 1)], dim=-1)
    rows: list[list[int]] = torch.stack(columns, dim=-1).tolist()
    return rows


def _draw(logits: torch.Tensor, sampling: Sampling, generator: torch.Generator) -> torch.Tensor:
    """Draw on the CPU, so that the same logits give the same tokens on every device."""
    values, candidates = (logits.cpu() / sampling.temperature).topk(min(sampling.top, logits.shape[-1]), dim=-1)
    drawn = torch.multinomial(values.softmax(-1), 1, generator=generator)
    return candidates.gather(-1, drawn)[:, 0].to(logits.device)


def _completion(loaded: LoadedModel, tokens: Sequence[int]) -> Completion:
    end = _end(loaded, tokens)
    kept = tuple(tokens[:end])
    return Completion(kept, loaded.decode(kept), stopped=end < len(tokens))


def _end(loaded: LoadedModel, tokens: Sequence[int]) -> int:
    """The place of the first token that ends the text; the number of tokens if none does."""
    return next((place for place, token in enumerate(tokens) if token in loaded.stops), len(tokens))


def sound(loaded: LoadedModel, prompts: Sequence[Sequence[int]], tokens: int) -> str | None:
    """What is wrong with a loaded folder as others will use it; None if nothing is.

    transformers' own greedy `generate` must give the tokens that this module generates. It stops where the folder's
    generation_config.json says.

    Args:
        loaded: The model.
        prompts: A few prompts, as token ids.
        tokens: How many tokens to generate.

    Raises:
        LoadFailed: The model does not run, or its logits are not finite. Nothing can be measured then.
    """
    ids, mask = left_padded(loaded, prompts)
    with torch.inference_mode():
        try:
            logits = loaded.model(input_ids=ids, attention_mask=mask).logits
        except Exception as error:  # a configuration that makes no sense can lead to any error
            if is_out_of_memory(error):
                raise  # no fault of the model
            raise LoadFailed(f"it does not run: {str(error)[:300]}") from error
        if not bool(torch.isfinite(logits[mask.bool()]).all()):
            raise LoadFailed("its logits are not finite")
        sequences = loaded.model.generate(
            ids, attention_mask=mask, max_new_tokens=tokens, do_sample=False, pad_token_id=loaded.tokenizer.pad_token_id
        )

    transformers_rows = sequences[:, ids.shape[1] :].tolist()
    completions = generate(loaded, prompts, tokens, len(prompts))
    for row, completion in zip(transformers_rows, completions, strict=True):
        if _completion(loaded, row).tokens != completion.tokens or _overruns(loaded, row):
            return (
                "transformers' generate gives other tokens than the evaluation's greedy decoding: does "
                "generation_config.json name both end tokens in eos_token_id?"
            )
    return None


def _overruns(loaded: LoadedModel, row: Sequence[int]) -> bool:
    """Whether anything but padding and end tokens follows the first end token."""
    after = row[_end(loaded, row) :]
    return any(token not in (*loaded.stops, loaded.tokenizer.pad_token_id) for token in after)
