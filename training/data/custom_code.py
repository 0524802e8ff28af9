"""Runs the functions of a recipe's own code, and checks what comes of them."""

from __future__ import annotations

import functools
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.abc import SourceLoader
from pathlib import Path
from types import ModuleType
from typing import Any

from training.custom import FILTER, MARK, SOURCE, Document
from training.data.sources.source_files import printable
from training.errors import RecipeError
from training.specs.corpus import filter_reason

_MODULE = "gatehouse_recipe_code"
_LONGEST_MESSAGE = 300


@dataclass(frozen=True)
class CustomCode:
    """A recipe's own code.

    Attributes:
        path: Its file, for messages.
        source: What stands in it. Every process runs these bytes, whatever happens to the file meanwhile.
    """

    path: str
    source: bytes

    @classmethod
    def read(cls, path: Path) -> CustomCode:
        """The code of a file."""
        return cls(str(path), path.read_bytes())

    def filters(self, names: Sequence[str]) -> list[Filter]:
        """The filters of these names.

        Raises:
            RecipeError: The file cannot be imported, or has no such filter.
        """
        return [Filter(self, name, self._function(name, FILTER)) for name in names]

    def documents(self, name: str, where: str, *arguments: object) -> Iterator[Document]:
        """What a source yields, one document after the other.

        Args:
            name: The function's.
            where: Names the source or the file in messages; the number of the document follows.
            arguments: What it is called with.

        Raises:
            RecipeError: The file cannot be imported or has no such source; or the function raised an error, or yielded
                something else than a text.
        """
        documents, number = self._started(name, where, arguments), 1
        while True:
            try:
                item = next(documents)
            except StopIteration:
                return
            except MemoryError:
                raise
            except (Exception, SystemExit) as error:
                raise self.error(name, error, f"{where}#{number}") from error
            yield self._checked(item, name, f"{where}#{number}")
            number += 1

    def _started(self, name: str, where: str, arguments: Sequence[object]) -> Iterator[object]:
        function = self._function(name, SOURCE)
        try:
            documents = function(*arguments)
            # The characters of a text and the fields of a document can be iterated as well.
            if not isinstance(documents, str | bytes | dict):
                return iter(documents)
        except MemoryError:
            raise
        except (Exception, SystemExit) as error:
            raise self.error(name, error, where) from error
        raise RecipeError(f"{self.path}: {name} returned {_kind(documents)} at {where}; yield the documents")

    def error(self, name: str, error: BaseException, where: str) -> RecipeError:
        """What a person is told of an error that a function raised."""
        message = printable(str(error).strip() or "without a message")[:_LONGEST_MESSAGE]
        return RecipeError(
            f"{self.path}:{_line(error, self.path)}: {name} raised {type(error).__name__} at {where}: {message}; "
            "correct the function"
        )

    def _checked(self, item: object, name: str, where: str) -> Document:
        document = Document(item) if isinstance(item, str) else item
        if not isinstance(document, Document):
            raise RecipeError(
                f"{self.path}: {name} yielded {_kind(item)} at {where}; yield a text, or a Document of training.custom"
            )
        if not isinstance(document.text, str):
            raise RecipeError(
                f"{self.path}: {name} yielded {_kind(document.text)} for the text at {where}; yield a str"
            )
        if document.licence is not None and not isinstance(document.licence, str):
            raise RecipeError(
                f"{self.path}: {name} yielded {_kind(document.licence)} for the licence at {where}; yield a str or None"
            )
        if document.source or document.path:
            raise RecipeError(
                f"{self.path}: {name} yielded a document with a source or a path at {where}; leave both out, Gatehouse "
                "gives them"
            )
        return document

    def _function(self, name: str, kind: str) -> Callable[..., Any]:
        function: Callable[..., Any] | None = getattr(_imported(self), name, None)
        if function is None or getattr(function, MARK, None) != kind:
            raise RecipeError(f"{self.path}: there is no function {name} decorated with @{kind}; write one")
        return function


class Filter:
    """A filter of a recipe's own code.

    Attributes:
        reason: For which its documents are dropped.
    """

    def __init__(self, code: CustomCode, name: str, function: Callable[..., Any]) -> None:
        self._code, self._name, self._function = code, name, function
        self.reason = filter_reason(name)

    def keeps(self, document: Document) -> bool:
        """Whether a document stays.

        Raises:
            RecipeError: The function raised an error, or returned something else than True or False.
        """
        where = f"{document.source}/{document.path}"
        try:
            kept = self._function(document)
        except MemoryError:
            raise
        except (Exception, SystemExit) as error:
            raise self._code.error(self._name, error, where) from error

        if not isinstance(kept, bool):
            raise RecipeError(
                f"{self._code.path}: {self._name} returned {_kind(kept)} at {where}; return True for a document that "
                "stays, and False for one that is dropped"
            )
        return kept


class _Loader(SourceLoader):
    """Loads a module from bytes that were read before."""

    def __init__(self, code: CustomCode) -> None:
        self._code = code

    def get_filename(self, fullname: str) -> str:
        """The file that messages name."""
        return self._code.path

    def get_data(self, path: str | bytes) -> bytes:
        """The source."""
        return self._code.source


@functools.lru_cache(maxsize=1)
def _imported(code: CustomCode) -> ModuleType:
    """The module, imported once a process.

    Raises:
        RecipeError: Importing it raises an error.
    """
    spec = importlib.machinery.ModuleSpec(_MODULE, _Loader(code), origin=code.path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[_MODULE] = module  # dataclasses look their module up
    try:
        # No fingerprint covers the file. Its digest is in the identity of the stages that use it, as a file of theirs.
        _Loader(code).exec_module(module)
    except (Exception, SystemExit) as error:
        message = printable(str(error))[:_LONGEST_MESSAGE]
        raise RecipeError(
            f"{code.path}:{_line(error, code.path)}: importing it raised {type(error).__name__}: {message}; correct "
            "the file. It can import installed libraries, and no file beside it"
        ) from error
    return module


def _line(error: BaseException, path: str) -> int:
    """The line of a file at which an error was raised, directly or further on; 1 if it is not known."""
    line, traceback = 1, error.__traceback__
    if isinstance(error, SyntaxError) and error.filename == path:
        return error.lineno or 1
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename == path:
            line = traceback.tb_lineno
        traceback = traceback.tb_next
    return line


def _kind(value: object) -> str:
    return "None" if value is None else f"a value of type {type(value).__name__}"
