"""`python -m training.chat MODEL_FOLDER [QUESTION]`: answer one question, or converse until the input ends."""

from __future__ import annotations

import sys
from pathlib import Path

import training.engine  # noqa: F401  # it must be loaded before torch: it quiets what torchao and torch warn of
from training.errors import UserError

_MAX_NEW_TOKENS = 128


def main(arguments: list[str]) -> int:
    """Load a plain transformers folder and answer greedily."""
    try:
        return _talk(Path(arguments[0]), " ".join(arguments[1:]))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return error.exit_code


def _talk(folder: Path, question: str) -> int:
    import torch
    from transformers import logging

    from training.data.chat import encode_conversation
    from training.model_folder import load_model, load_tokenizer

    logging.disable_progress_bar()
    model, tokenizer = load_model(folder), load_tokenizer(folder)

    def answer(messages: list[dict[str, str]]) -> str:
        ids = torch.from_numpy(encode_conversation(tokenizer, messages, add_generation_prompt=True)[0])[None]
        with torch.inference_mode():
            output = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=_MAX_NEW_TOKENS,
                                    do_sample=False)
        return str(tokenizer.decode(output[0, ids.shape[1]:], skip_special_tokens=True)).strip()

    if question:
        print(answer([{"role": "user", "content": question}]))
        return 0
    print("Ask something; Ctrl-D ends.")
    messages: list[dict[str, str]] = []
    for line in iter(_ask, None):
        messages += [{"role": "user", "content": line}]
        messages += [{"role": "assistant", "content": answer(messages)}]
        print(messages[-1]["content"])
    return 0


def _ask() -> str | None:
    try:
        return input("> ")
    except EOFError:
        return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
