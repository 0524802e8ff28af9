"""The errors that Gatehouse raises on purpose.

::

    GatehouseError                a fault of the system: keeps its traceback, exit code 1
    └── UserError                 a person's mistake: one clear message, no traceback, exit code 2
        ├── RecipeError           a recipe, an override or a launcher file says something impossible
        ├── SourceError           a source file or folder is missing, unreadable or malformed
        ├── InputRefused          an input is not promoted, not certified, or not the bytes it claims to be
        ├── StoreError            the store is unreachable, read-only, full or damaged
        └── Busy                  another process holds what is needed (an asset being built, a port)

A message names the file and the key or row, and says what to do next.
"""

from __future__ import annotations

EXIT_OK = 0
EXIT_FAULT = 1
EXIT_USER = 2
EXIT_PREEMPTED = 75  # start it again: preempted, rolled back, or out of memory at this micro-batch


class GatehouseError(Exception):
    """A fault of the system."""

    exit_code = EXIT_FAULT


class UserError(GatehouseError):
    """A person's mistake; the message alone is shown, without a traceback."""

    exit_code = EXIT_USER


class RecipeError(UserError):
    """A recipe, an override or a launcher file says something impossible."""


class SourceError(UserError):
    """A source file or folder is missing, unreadable or malformed."""


class InputRefused(UserError):
    """An input is not promoted, not certified, or not the bytes it claims to be."""


class StoreError(UserError):
    """The store is unreachable, read-only, full or damaged."""


class Busy(UserError):
    """Another process holds what is needed."""
