"""Recipe section of `packed_shards`."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from training.specs.base import Spec


class PackedShardsSection(Spec):
    """Everything that decides the content of `packed_shards`.

    The shards hold each document's tokens once, whatever the context length. `contexts` only says for which lengths
    packing is measured, so it is no part of the identity: other contexts are measured again, and tokenize nothing.
    """

    contexts: tuple[Annotated[int, Field(gt=1)], ...] = Field(
        (128, 256, 512), min_length=1, description="Tokens per row; the base model's curriculum is among them."
    )
    shard_tokens: int = Field(64 * 2**20, gt=0)
    exclude_domains: tuple[str, ...] = Field(
        (), description="Domains kept back for the adapter; by default the adapter's own."
    )
    weights: dict[str, float] = Field(
        {}, description="Filled in: 1 for each source. What a training asks for stands in its own section."
    )

    def identity_fields(self) -> dict[str, Any]:
        """All fields, with the default contexts for any: they change no file of the shards.

        Versions of before named them, and those with the default ones keep their identity.
        """
        default = type(self).model_fields["contexts"].default
        return self.model_dump(mode="json") | {"contexts": list(default)}
