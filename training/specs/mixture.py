"""The mixture of a training's sources: what is asked for, and `mixture.json`, what was read.

A source's weight says how often its tokens are read beside those of others: with equal weights all are read equally
often, and a source's share of what is read is its weight times its size. A `mixture` gives the shares themselves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import Field

from training.specs.base import Spec
from training.specs.base_model import BaseModelSection, Phase

MIXTURE_FILE = "mixture.json"


class SourceRead(Spec):
    """What a training read of one source.

    Attributes:
        tokens: Tokens that were learned from it, each as often as it was read.
        held: Tokens that the shards hold of it.
    """

    name: str
    tokens: int = Field(ge=0)
    held: int = Field(ge=0)

    @property
    def epochs(self) -> float:
        """How often the source was read; 0 of a source without tokens."""
        return self.tokens / self.held if self.held else 0.0


class Mixture(Spec):
    """`mixture.json`: what a training read of every source that its recipe lists."""

    sources: tuple[SourceRead, ...] = Field(min_length=1)

    @property
    def tokens(self) -> int:
        """Tokens of all sources."""
        return sum(source.tokens for source in self.sources)

    def shares(self) -> dict[str, float]:
        """Share of each source in what was read."""
        return {source.name: source.tokens / max(self.tokens, 1) for source in self.sources}

    def error(self, asked: Mapping[str, float]) -> float:
        """The largest difference between a source's share and the one that was asked for, from 0 to 1.

        Args:
            asked: Share of each source, as `asked_shares` gives it.
        """
        return max(abs(share - asked.get(name, 0.0)) for name, share in self.shares().items())


def sampling_weights(section: BaseModelSection, phase: Phase, held: Mapping[str, int]) -> dict[str, float]:
    """Weight of each source in a phase of the curriculum: how often it is read beside the others.

    Args:
        section: The recipe's.
        phase: One phase of it.
        held: Tokens that the shards hold of each source.

    Raises:
        ValueError: Tokens of a source are asked for, and there are none.
    """
    shares = phase.mixture or section.mixture
    if shares:
        return weights_of_shares(shares, held)
    return {name: phase.weights.get(name, section.weights.get(name, 1.0)) for name in held}


def weights_of_shares(shares: Mapping[str, float], held: Mapping[str, int]) -> dict[str, float]:
    """Weight of each source, so that its tokens have a share of all that are read.

    Args:
        shares: Of the sources; they add up to 1.
        held: Tokens that the shards hold of each source.

    Raises:
        ValueError: Tokens of a source are asked for, and there are none.
    """
    empty = [name for name, share in shares.items() if share and not held.get(name)]
    if empty:
        raise ValueError(f"{shares[empty[0]]:g} of the tokens are asked of {empty[0]}, and packed_shards holds none")
    return {name: shares.get(name, 0.0) / tokens if tokens else 0.0 for name, tokens in held.items()}


def asked_shares(section: BaseModelSection, held: Mapping[str, int], steps: Sequence[int]) -> dict[str, float]:
    """Share of each source in the tokens that a recipe asks for.

    Args:
        section: The recipe's.
        held: Tokens that the shards hold of each source.
        steps: Of each phase of the curriculum.

    Raises:
        ValueError: As `sampling_weights`.
    """
    asked = dict.fromkeys(held, 0.0)
    for phase, count in zip(section.curriculum, steps, strict=True):
        weights = sampling_weights(section, phase, held)
        whole = sum(weights[name] * tokens for name, tokens in held.items())
        for name, tokens in held.items():
            asked[name] += count / sum(steps) * weights[name] * tokens / whole
    return asked
