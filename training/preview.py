"""`python -m training.preview`: rows of training data as a model will see them; a request comes in, and rows go out.

Reads a `PreviewRequest` from standard input and writes a `Preview` to standard output, as JSON.
"""

from __future__ import annotations

import sys

from training.errors import EXIT_USER, UserError
from training.specs.preview import PreviewRequest


def main() -> int:
    """Encode the rows and print them."""
    request = PreviewRequest.model_validate_json(sys.stdin.buffer.read())
    try:
        from training.evaluation.preview import preview
        from training.evaluation.preview_page import page

        shown = preview(request)
        if request.page is not None:
            request.page.write_text(page(f"Rows of {request.asset}", shown), encoding="utf-8")
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return EXIT_USER
    sys.stdout.buffer.write(shown.model_dump_json().encode())
    sys.stdout.buffer.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
