"""The texts that a tokenizer is trained on: the first documents of each source by digest, read a few at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from training.data.text.documents import Split

# `tokenizers` counts pairs of tokens in 32 bits with a sign. Each occurrence of a pair has a place of its own in the
# text, so no pair occurs as often as the text has bytes.
MOST_BYTES = 2**31 - 1


def sample_of(split: Split, most_bytes: int, weights: Mapping[str, float]) -> Iterator[str]:
    """Texts of a split in the order of their ids, each at most once.

    Without weights they are the first ones, up to the one that reaches `most_bytes`. With weights a source's share of
    the sample is its weight times its size, relative to the other sources; of a source that has less, all is taken.

    Args:
        split: The split.
        most_bytes: Of UTF-8; at most `MOST_BYTES`.
        weights: By source; one that is not named has 1. Empty for none.

    Raises:
        InputRefused: A file of the split cannot be read.
    """
    if not weights:
        for batch in split.texts(most_bytes):
            yield from batch
        return

    rows = split.table(["source", "bytes"])
    names, source = np.unique(rows["source"].to_numpy(), return_inverse=True)
    sizes = rows["bytes"].to_numpy()
    of_source = np.bincount(source, sizes, minlength=len(names))
    wanted = of_source * [weights.get(str(name), 1.0) for name in names]
    budgets = most_bytes * wanted / wanted.sum()

    chosen = np.zeros(len(sizes), np.bool_)
    for number, budget in enumerate(budgets.tolist()):
        places = np.flatnonzero(source == number)
        chosen[places[np.cumsum(sizes[places]) <= budget]] = True
    for _, document in split.rows(chosen):
        yield document.text
