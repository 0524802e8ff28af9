"""A loaded model as lm-evaluation-harness sees one.

Importing this module imports lm-evaluation-harness; only a job that has tasks to run does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from training.data.conversations.chat_template import CHAT_TEMPLATE, plain_content
from training.evaluation.generation import generate
from training.evaluation.models import LoadedModel
from training.evaluation.scoring import Span, score, windows

_OTHERS = 2
_NEW_TOKENS = 256  # what the harness's own models take where a task names no limit


class HarnessModel(LM):  # type: ignore[misc]
    """Answers the harness's requests with the evaluation's own scoring and greedy decoding.

    No item can open or close a turn: in plain text the names of special tokens are text, and in a chat they are broken
    by a space, both as in training. Whether a scored text is the greedy one is not computed: `False` stands in its
    place, and `harness` runs no task that asks for it.

    Attributes:
        elsewhere: Mean log-likelihood of a choice after the contexts of other items, by task, item and choice. Filled
            for `dcpmi` alone.
    """

    def __init__(self, loaded: LoadedModel, batch: int, context: int, *, dcpmi: bool = False) -> None:
        """
        Args:
            loaded: The model.
            batch: Sequences in one forward pass.
            context: Most tokens of a sequence.
            dcpmi: Score every continuation after the contexts of other items too.
        """
        super().__init__()
        self.elsewhere: dict[tuple[str, int, int], float] = {}
        self._dcpmi = dcpmi
        self._loaded, self._batch, self._context = loaded, batch, context
        self._chat = loaded.asset != "base_model"
        self._device = loaded.device

    @property
    def tokenizer_name(self) -> str:
        """Names the model's tokenizer; nothing is cached under it."""
        return self._loaded.asset

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The conversation as text, in the chat template of training: the folder's own is not run.

        Without `add_generation_prompt` the last turn is the beginning of the assistant's answer, which is left open.
        """
        asked, begun = (chat_history, "") if add_generation_prompt else (chat_history[:-1], chat_history[-1]["content"])
        return str(
            self._loaded.tokenizer.apply_chat_template(
                asked, chat_template=CHAT_TEMPLATE, tokenize=False, add_generation_prompt=True
            )
        ) + _plain(begun)

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Natural logarithm of each continuation's probability after its context.

        An empty context stands for the end of a text, as in the harness's own models.
        """
        if self._dcpmi:
            asked = [request for request in requests if request.args[0]]
            likelihoods = self._likelihoods(self._others(asked), [request.args[1] for request in asked])
            self.elsewhere |= {
                (str(request.task_name), int(request.doc_id), request.idx): nats
                for request, nats in zip(asked, likelihoods, strict=True)
            }
        own = self._likelihoods([[request.args[0]] for request in requests], [request.args[1] for request in requests])
        return [(nats, False) for nats in own]

    def _likelihoods(self, contexts: Sequence[Sequence[str]], continuations: Sequence[str]) -> list[float]:
        """Of each continuation the mean over its contexts."""
        spans = [
            [self._span(context, continuation) for context in group]
            for group, continuation in zip(contexts, continuations, strict=True)
        ]
        scores = iter(score(self._loaded, [span for group in spans for span in group], self._batch, self._context))
        return [math.fsum(next(scores).nats for _ in group) / len(group) for group in spans]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Log-likelihood of each whole text, in windows that do not overlap."""
        cut = [windows(self._loaded, request.args[0], self._context) for request in requests]
        found = iter(score(self._loaded, [span for spans in cut for span in spans], self._batch, self._context))
        return [math.fsum(next(found).nats for _ in spans) for spans in cut]

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """The greedy continuation of each context, up to the first of its stopping texts.

        Raises:
            ValueError: A request wants its text to be drawn.
        """
        texts: dict[int, str] = {}
        wanted = [(self._limit(request.args[1]), _stops(request.args[1])) for request in requests]
        for limit, stops in sorted(set(wanted)):
            chosen = [number for number, found in enumerate(wanted) if found == (limit, stops)]
            prompts = [self._given(requests[number].args[0])[-max(1, self._context - limit) :] for number in chosen]
            answers = generate(self._loaded, prompts, limit, self._batch, until=stops)
            texts |= {number: _cut(answer.text, stops) for number, answer in zip(chosen, answers, strict=True)}
        return [texts[number] for number in range(len(requests))]

    def _limit(self, arguments: dict[str, object]) -> int:
        if arguments.get("do_sample"):
            raise ValueError("it wants texts to be drawn, and Gatehouse decodes greedily only")
        wanted = arguments.get("max_gen_toks") or _NEW_TOKENS
        assert isinstance(wanted, int)
        return min(wanted, max(1, self._context // 2))

    def _others(self, requests: list[Instance]) -> list[list[str]]:
        """For every request the contexts of the next items of its task; an empty one where it is the only item."""
        asked: dict[str, dict[int, str]] = {}
        for request in requests:
            asked.setdefault(request.task_name, {}).setdefault(request.doc_id, request.args[0])
        place = {task: {item: number for number, item in enumerate(items)} for task, items in asked.items()}
        found = []
        for request in requests:
            items = list(asked[request.task_name].values())
            at = place[request.task_name][request.doc_id]
            found.append(
                [items[(at + step) % len(items)] for step in range(1, min(_OTHERS, len(items) - 1) + 1)] or [""]
            )
        return found

    def _given(self, context: str) -> list[int]:
        if self._chat and context:
            return self._loaded.encode_rendered(context)
        return self._document(context)

    def _document(self, text: str) -> list[int]:
        return [self._loaded.start, *self._loaded.encode(text)]

    def _span(self, context: str, continuation: str) -> Span:
        """A context and what is scored after it.

        Plain text is tokenized as a whole and cut, with the spaces between the two on the right, as the harness does; a
        chat's answer is tokenized by itself, as it is in training.
        """
        if self._chat and context:
            return Span(self._given(context), self._loaded.encode(_plain(continuation)))
        kept = context.rstrip()
        given, whole = self._document(kept), self._document(context + continuation)
        return Span(given, whole[len(given) :] or self._loaded.encode(continuation))


def _plain(text: str) -> str:
    """A turn's content with the names of special tokens broken, and the white space at its ends kept."""
    inner = text.strip()
    start = text.index(inner)
    return text[:start] + plain_content(inner) + text[start + len(inner) :]


def _stops(arguments: dict[str, Any]) -> tuple[str, ...]:
    found = arguments.get("until") or ()
    return tuple(stop for stop in ([found] if isinstance(found, str) else found) if stop)


def _cut(text: str, stops: Sequence[str]) -> str:
    ends = [text.find(stop) for stop in stops]
    return text[: min((end for end in ends if end >= 0), default=len(text))]
