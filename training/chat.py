"""`python -m training.chat MODEL_FOLDER [QUESTION]`: answer one question, or converse until the input ends."""

from __future__ import annotations

import sys

import training.engine  # noqa: F401  # it must be loaded before torch: it quiets what torchao and torch warn of

_MAX_NEW_TOKENS = 128


def main(arguments: list[str]) -> int:
    """Load a plain transformers folder and answer greedily."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, logging

    logging.disable_progress_bar()
    folder = arguments[0]
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, use_safetensors=True).float().eval()

    def answer(messages: list[dict[str, str]]) -> str:
        inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt",
                                               return_dict=True)
        length = inputs["input_ids"].shape[1]
        with torch.inference_mode():
            output = model.generate(**inputs, max_new_tokens=_MAX_NEW_TOKENS, do_sample=False)
        return str(tokenizer.decode(output[0, length:], skip_special_tokens=True)).strip()

    if len(arguments) > 1:
        print(answer([{"role": "user", "content": " ".join(arguments[1:])}]))
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
