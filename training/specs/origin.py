"""What every source of a recipe has in common, whatever its rows are: where it lies, and which of its files count."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from training.specs.base import Spec


class Origin(Spec):
    """Where rows come from: a local folder, file or glob, or a Hugging Face dataset."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$", description="Short name; it appears in every statistic.")
    path: str | None = Field(
        None,
        description="A folder, file or glob. `~` and environment variables are expanded; "
        "a relative path starts at the folder of the recipe file that writes it.",
    )
    dataset: str | None = Field(None, description="A dataset's name on the Hugging Face hub.")
    config: str | None = Field(None, description="The dataset's configuration.")
    revision: str | None = Field(None, description="The dataset's commit; pin it, it is part of the identity.")
    split: str = Field("train", description="The dataset's split.")
    include: tuple[str, ...] = Field((), description="Keep only paths that match one of these globs.")
    exclude: tuple[str, ...] = Field((), description="Drop paths that match one of these globs.")
    follow_links: bool = Field(
        False,
        description="Read links to files and folders outside of the source's folder, "
        "such as those of a download cache.",
    )
    licence: str | None = Field(None, description="Licence of the texts, recorded as provenance.")
    weight: float = Field(
        1.0, gt=0, description="Share of the training tokens relative to the other sources' weights times their sizes."
    )

    @property
    def limit(self) -> int | None:
        """The most rows that are read; None for all of them."""
        return None

    @property
    def other_origins(self) -> tuple[str, ...]:
        """Names of switches that stand in place of `path` and `dataset`."""
        return ()

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        switches = self.other_origins
        given = [name for name in ("path", "dataset", *switches) if getattr(self, name)]
        if len(given) != 1:
            names = ", ".join(["path", *switches]) if switches else "path"
            raise ValueError(f"give exactly one of {names} and dataset (given: {', '.join(given) or 'none'})")
        return self
