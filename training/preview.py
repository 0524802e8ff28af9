"""`python -m training.preview`: rows of training data as a model will see them, or the first documents of a source.

Reads a `PreviewRequest` or a `SourcePreviewRequest` from standard input and writes a `Preview` to standard output, as
JSON.
"""

from __future__ import annotations

import sys

from pydantic import TypeAdapter

from training.errors import EXIT_USER, UserError
from training.specs.preview import Preview, PreviewRequest, SourcePreviewRequest

_REQUEST = TypeAdapter[PreviewRequest | SourcePreviewRequest](PreviewRequest | SourcePreviewRequest)


def main() -> int:
    """Encode the rows and print them."""
    answer = sys.stdout.buffer
    # A function of the recipe's own code may print.
    sys.stdout = sys.stderr
    try:
        shown = _shown(_REQUEST.validate_json(sys.stdin.buffer.read()))
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return EXIT_USER
    answer.write(shown.model_dump_json().encode())
    answer.flush()
    return 0


def _shown(request: PreviewRequest | SourcePreviewRequest) -> Preview:
    if isinstance(request, SourcePreviewRequest):
        from training.evaluation.source_preview import preview_source

        return preview_source(request)

    from training.evaluation.preview import preview
    from training.evaluation.preview_page import page

    shown = preview(request)
    if request.page is not None:
        request.page.write_text(page(f"Rows of {request.asset}", shown), encoding="utf-8")
    return shown


if __name__ == "__main__":
    sys.exit(main())
