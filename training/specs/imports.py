"""Where a model or a tokenizer of somebody else's comes from: what its recipe section says of that."""

from __future__ import annotations

import re
from typing import Any, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from training.specs.base import Spec

_COMMIT = re.compile(r"[0-9a-f]{40}")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
GGUF_SUFFIX = ".gguf"


class Origin(Spec):
    """A folder, one of its GGUF files, or a repository of the hub at one commit."""

    name: str = Field(description="Path of a folder or of a GGUF file, or a name on the hub.")
    revision: str | None = Field(None, description="The commit; only a name on the hub has one.")
    gguf: str | None = Field(None, description="Name of a GGUF file in it.")

    @property
    def is_hub(self) -> bool:
        """Whether the name is one of the hub."""
        return self.revision is not None


class Imported(Spec):
    """The part of a section that names an origin. `from` is a word of Python, so its field is called `from_`.

    A dump leaves these keys out where nothing is imported, so that every other section is written as before.
    """

    from_: str | None = Field(
        None,
        alias="from",
        min_length=1,
        description="A folder, a .gguf file, or a name on the Hugging Face hub with its `revision`. `~` and "
        "environment variables are expanded; a relative path starts at the folder of the recipe file that writes it.",
    )
    revision: str | None = Field(None, description="Commit of a name on the hub, 40 hex digits.")
    gguf: str | None = Field(None, min_length=1, description="Name of a GGUF file in the folder or the repository.")

    @property
    def origin(self) -> Origin | None:
        """Where it is imported from; None where it is made here."""
        return None if self.from_ is None else Origin(name=self.from_, revision=self.revision, gguf=self.gguf)

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if problems := list(self._origin_problems()):
            raise ValueError("\n".join(problems))
        return self

    def _origin_problems(self) -> list[str]:
        if self.from_ is None:
            given = [name for name in ("revision", "gguf") if getattr(self, name) is not None]
            return [f"{name}: it belongs to `from`, which is missing here" for name in given]

        problems = []
        if self.revision is not None and not _COMMIT.fullmatch(self.revision):
            problems.append(
                f"revision: {self.revision[:60]!r} is no commit (40 hex digits): a branch or a tag can move; the page "
                "of the model on the hub lists its commits under Files, History"
            )
        if self.revision is not None and not _HUB_NAME.fullmatch(self.from_):
            problems.append(f"from: {self.from_[:60]!r} is no name on the hub; leave out `revision` for a local path")
        if self.gguf is not None and ("/" in self.gguf or not self.gguf.lower().endswith(GGUF_SUFFIX)):
            problems.append(f"gguf: {self.gguf[:60]!r} is no name of a GGUF file; write it with its suffix, .gguf")
        if self.gguf is not None and self.from_.lower().endswith(GGUF_SUFFIX):
            problems.append("gguf: `from` names a GGUF file already; leave `gguf` out")
        return problems

    def identity_fields(self) -> dict[str, Any]:
        """All fields but the origin's: what is imported decides, and not the place where it lies.

        The state of the origin (`training.data.sources.origins.origin_state`) takes its place in the identity.
        """
        fields = super().identity_fields()
        if "from" in fields:
            fields = {name: value for name, value in fields.items() if name not in ("from", "revision", "gguf")}
            fields["imported"] = True
        return fields

    def _unwritten(self) -> set[str]:
        """The fields that a dump leaves out."""
        return {name for name in ("from_", "revision", "gguf") if getattr(self, name) is None}

    @model_serializer(mode="wrap")
    def _dump(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields = {name: value for name, value in handler(self).items() if name not in self._unwritten()}
        # The alias whether it is asked for or not: the dump of a section is validated again by the job.
        origin = fields.pop("from_", fields.pop("from", None))
        return fields if origin is None else {"from": origin, **fields}


TOKENIZER_IMPORT = "import.json"


class TokenizerImport(Spec):
    """`import.json` of an imported tokenizer: what other stages must know of it.

    Attributes:
        added: Special tokens of the recipe that the tokenizer did not have, with their ids.
        turn_ends: Ids of the tokens that end an answer by the chat template.
        template: Name of the template, and the SHA-256 of its text; empty where there is none.
    """

    kind: str = ""
    added: dict[str, int] = {}
    turn_ends: tuple[int, ...] = ()
    template: str = ""
    template_digest: str = ""
    notes: tuple[str, ...] = ()
