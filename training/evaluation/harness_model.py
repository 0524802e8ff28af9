"""A loaded model as lm-evaluation-harness sees one.

Importing this module imports lm-evaluation-harness; only a job that has tasks to run does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from training.evaluation.generation import generate
from training.evaluation.models import LoadedModel
from training.evaluation.scoring import Span, score, windows

_OTHERS = 2  # items whose contexts a choice is scored after, for DC-PMI
_NEW_TOKENS = 256  # the limit of the harness's own models where a task names none


class HarnessModel(LM):  # type: ignore[misc]
    """Answers the harness's requests with the evaluation's own scoring and greedy decoding.

    No item can open or close a turn: in plain text the names of special tokens are text, and in a chat they are broken
    by a space, both as in training. The harness also asks whether a scored text is the greedy one. That is not computed
    and always answered with `False`; `harness` runs no task that needs it.

    Attributes:
        elsewhere: Task, item and choice to the choice's mean log-likelihood, in nats, after other items' contexts.
            Filled for `dcpmi` alone.
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
        # The harness hands a conversation on as text, which no longer says what in it is a name and what a token.
        self._prompts: dict[str, list[int]] = {}
        self._loaded, self._batch, self._context = loaded, batch, context

        self._device = loaded.device

    @property
    def tokenizer_name(self) -> str:
        """A name for the model's tokenizer; nothing is cached under it."""
        return self._loaded.asset

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The conversation as text, in the chat format of training.

        Without `add_generation_prompt` the last turn is the beginning of the assistant's answer, which is left open.
        """
        turns, beginning = chat_history, ""
        if not add_generation_prompt:
            turns, beginning = chat_history[:-1], chat_history[-1]["content"]
        chat_format = self._loaded.chat_format
        rendered = chat_format.render(turns, prompt=True)
        if not beginning and rendered not in self._prompts:
            self._prompts[rendered] = chat_format.prompt(turns).tolist()
        return rendered + self._plain(beginning)

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Natural logarithm of each continuation's probability after its context.

        An empty context stands for the end of a text, as in the harness's own models.
        """
        if self._dcpmi:
            with_context = [request for request in requests if request.args[0]]
            continuations = [request.args[1] for request in with_context]
            likelihoods = self._likelihoods(self._others(with_context), continuations)
            self.elsewhere |= {
                (str(request.task_name), int(request.doc_id), request.idx): nats
                for request, nats in zip(with_context, likelihoods, strict=True)
            }

        contexts = [[request.args[0]] for request in requests]
        return [(nats, False) for nats in self._likelihoods(contexts, [request.args[1] for request in requests])]

    def _likelihoods(self, contexts: Sequence[Sequence[str]], continuations: Sequence[str]) -> list[float]:
        """Each continuation's mean log-likelihood, in nats, over its contexts."""
        spans = [
            [self._span(context, continuation) for context in group]
            for group, continuation in zip(contexts, continuations, strict=True)
        ]
        scores = iter(score(self._loaded, [span for group in spans for span in group], self._batch, self._context))
        return [math.fsum(next(scores).nats for _ in group) / len(group) for group in spans]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Log-likelihood of each whole text, in nats, in windows that do not overlap."""
        windows_of = [windows(self._loaded, request.args[0], self._context) for request in requests]
        all_spans = [span for spans in windows_of for span in spans]
        scores = iter(score(self._loaded, all_spans, self._batch, self._context))
        return [math.fsum(next(scores).nats for _ in spans) for spans in windows_of]

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """The greedy continuation of each context, up to the first of its stopping texts.

        Raises:
            ValueError: A request wants its text to be drawn.
        """
        texts: dict[int, str] = {}
        settings = [(self._limit(request.args[1]), _stops(request.args[1])) for request in requests]
        # Requests with the same limit and stopping texts share their batches.
        for limit, stops in sorted(set(settings)):
            numbers = [number for number, setting in enumerate(settings) if setting == (limit, stops)]
            prompts = [self._given(requests[number].args[0])[-max(1, self._context - limit) :] for number in numbers]
            answers = generate(self._loaded, prompts, limit, self._batch, until=stops)
            texts |= {number: _cut(answer.text, stops) for number, answer in zip(numbers, answers, strict=True)}
        return [texts[number] for number in range(len(requests))]

    def _limit(self, arguments: dict[str, object]) -> int:
        """New tokens of a request: what it asks for, and at most half of the context."""
        if arguments.get("do_sample"):
            raise ValueError("it wants texts to be drawn, and Gatehouse decodes greedily only")
        new_tokens = arguments.get("max_gen_toks") or _NEW_TOKENS
        assert isinstance(new_tokens, int)
        return min(new_tokens, max(1, self._context // 2))

    def _others(self, requests: list[Instance]) -> list[list[str]]:
        """For every request, the contexts of the next items of its task; an empty one if it is the only item."""
        contexts: dict[str, dict[int, str]] = {}
        for request in requests:
            contexts.setdefault(request.task_name, {}).setdefault(request.doc_id, request.args[0])
        places = {task: {item: place for place, item in enumerate(items)} for task, items in contexts.items()}

        others = []
        for request in requests:
            items = list(contexts[request.task_name].values())
            place = places[request.task_name][request.doc_id]
            steps = range(1, min(_OTHERS, len(items) - 1) + 1)
            others.append([items[(place + step) % len(items)] for step in steps] or [""])
        return others

    def _given(self, context: str) -> list[int]:
        """Token ids of a context."""
        if self._loaded.is_chat and context:
            return self._prompts.get(context) or self._loaded.encode_rendered(context)
        return self._document(context)

    def _document(self, text: str) -> list[int]:
        return [self._loaded.start, *self._loaded.encode(text)]

    def _span(self, context: str, continuation: str) -> Span:
        """A context and the continuation that is scored after it.

        Plain text is tokenized as a whole and cut before the spaces between the two, as in the harness's own models. A
        chat's answer is tokenized by itself, as in training.
        """
        if self._loaded.is_chat and context:
            return Span(self._given(context), self._loaded.encode(self._plain(continuation)))
        kept = context.rstrip()
        given, whole = self._document(kept), self._document(context + continuation)
        return Span(given, whole[len(given) :] or self._loaded.encode(continuation))

    def _plain(self, text: str) -> str:
        """A turn's content as the template writes it, with the white space at its ends kept."""
        inner = text.strip()
        start = text.index(inner)
        return text[:start] + self._loaded.chat_format.written(inner) + text[start + len(inner) :]


def _stops(arguments: dict[str, Any]) -> tuple[str, ...]:
    until = arguments.get("until") or ()
    return tuple(stop for stop in ([until] if isinstance(until, str) else until) if stop)


def _cut(text: str, stops: Sequence[str]) -> str:
    ends = [text.find(stop) for stop in stops]
    return text[: min((end for end in ends if end >= 0), default=len(text))]
