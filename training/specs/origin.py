"""What every source of a recipe has in common, whatever its rows are: where it lies, and which of its files count."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import Field, ValidatorFunctionWrapHandler, WrapValidator, field_validator, model_validator
from pydantic_core import PydanticKnownError

from training.specs.addresses import is_address, problem_of
from training.specs.base import Spec


def _text_or_list(value: Any, _: ValidatorFunctionWrapHandler) -> Any:
    """A text, or texts. pydantic's own error for a union of the two would name a key that no recipe has."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, list | tuple) and value and all(isinstance(item, str) for item in value):
        return tuple(value)
    raise PydanticKnownError("string_type")


class Origin(Spec):
    """Where rows come from: a local folder, file or glob, addresses of files, or a Hugging Face dataset."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$", description="Short name; it appears in every statistic.")
    path: Annotated[str | tuple[str, ...] | None, WrapValidator(_text_or_list)] = Field(
        None,
        description="A folder, file or glob. `~` and environment variables are expanded; "
        "a relative path starts at the folder of the recipe file that writes it. Also s3://bucket/ with a folder, "
        "file or glob, and http(s)://, one address or a list of them.",
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

    @property
    def addresses(self) -> tuple[str, ...]:
        """The addresses of `path`, as the recipe writes them; none where it is a path of this machine."""
        if isinstance(self.path, tuple):
            return self.path
        return (self.path,) if self.path is not None and is_address(self.path) else ()

    @field_validator("path")
    @classmethod
    def _allowed_addresses(cls, path: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
        if isinstance(path, tuple) and not all(map(is_address, path)):
            raise ValueError("a list holds addresses only, such as https://host/file; give each local path as a source")
        for address in path if isinstance(path, tuple) else (path,):
            if address is not None and is_address(address) and (problem := problem_of(address)):
                raise ValueError(problem)
        return path

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        switches = self.other_origins
        given = [name for name in ("path", "dataset", *switches) if getattr(self, name)]
        if len(given) != 1:
            names = ", ".join(["path", *switches]) if switches else "path"
            raise ValueError(f"give exactly one of {names} and dataset (given: {', '.join(given) or 'none'})")
        return self
