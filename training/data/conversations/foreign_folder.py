"""The tokenizer stage of an imported tokenizer: one normalised folder with its chat template, and what it is like."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from training.data.conversations.chat_template import TEMPLATE_FILE
from training.data.conversations.named_templates import (
    SPECIAL_TOKENS,
    exported,
    named_template,
    with_added_learned,
    with_date,
    with_texts,
)
from training.data.reports import markdown_table, write_card, write_samples
from training.data.sources.origins import OriginFiles, origin_files, origin_state
from training.data.text.documents import Split
from training.data.tokens.byte_bpe import TOKENIZER_FILE, encode_texts, load_plain
from training.data.tokens.foreign_tokenizer import ForeignTokenizer, read_foreign
from training.errors import GatehouseError, InputRefused, RecipeError
from training.job.context import StageContext
from training.specs.imports import TOKENIZER_IMPORT, TokenizerImport
from training.specs.job import StageResult
from training.specs.tokenizer import OWN_TEMPLATE, TokenizerSection
from training.store.store import file_entry

_MEASURED_BYTES = 2 * 2**20
_SAMPLES, _EXCERPT = 8, 160
_LONGEST_TEMPLATE = 2**20
# What the samples are taken from where there is no corpus; every kind of character that tokenizers treat apart.
_TEXTS = (
    "The capital of Norway is Oslo, and the capital of France is Paris.",
    "def f(x):\n    return x ** 2  # 1234567890\n",
    "  two  spaces\tand a tab\n\n\nthree lines",
    "na\u00efve \u65e5\u672c\u8a9e \u0645\u0631\u062d\u0628\u0627 e\u0301 \U0001f469\u200d\U0001f680 don't I'LL",
)


def publish_tokenizer(context: StageContext[TokenizerSection]) -> StageResult:
    """Import the tokenizer of the section's origin.

    Raises:
        InputRefused: It cannot be imported, or the origin changed meanwhile.
        RecipeError: The template needs tokens that the tokenizer lacks.
        SourceError: There is no such origin.
    """
    section = context.section
    assert section.origin is not None
    context.events.phase("import the tokenizer")
    files, state = origin_files(section.origin), origin_state(section.origin)
    foreign = read_foreign(files, section.special_tokens)
    folder = context.out / Path(TOKENIZER_FILE).parent
    foreign.save(folder)
    require_same_ids(foreign.tokenizer, folder, _TEXTS)

    name, template = chosen_template(section, foreign, context.files.get("template"))
    if template is not None:
        (folder / TEMPLATE_FILE).write_text(template, encoding="utf-8")
    written = TokenizerImport(
        kind=foreign.kind,
        added=foreign.added,
        turn_ends=turn_ends(folder, foreign) if template is not None else (),
        template=name,
        template_digest=hashlib.sha256(template.encode()).hexdigest() if template is not None else "",
        notes=foreign.notes,
    )
    (context.out / TOKENIZER_IMPORT).write_text(written.model_dump_json(indent=1) + "\n", encoding="utf-8")
    for note in foreign.notes:
        context.events.log(note)

    metrics = _report(context, files, foreign, written)
    if origin_state(section.origin) != state:
        raise InputRefused(f"{files.folder} has changed while it was imported; materialize tokenizer again")
    digests = {"template": written.template_digest} if template is not None else {}
    return StageResult(
        metrics=metrics,
        headline="bytes_per_token_training" if "bytes_per_token_training" in metrics else "vocabulary",
        facts={"tokenizer": file_entry(context.out / TOKENIZER_FILE).sha256, "origin": state, **digests},
    )


def require_same_ids(tokenizer: Tokenizer, folder: Path, texts: Sequence[str]) -> None:
    """See that the written folder gives the ids of the tokenizer that was read, here and in transformers.

    Raises:
        GatehouseError: It does not.
    """
    from transformers import PreTrainedTokenizerFast

    plain = load_plain(folder / "tokenizer.json")
    loaded = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    for text in texts:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        for name, others in (
            ("the written file", plain.encode(text, add_special_tokens=False).ids),
            ("transformers", loaded(text, add_special_tokens=False, verbose=False)["input_ids"]),
        ):
            if ids != others:
                raise GatehouseError(f"{name} gives other ids for {text[:40]!r}: {others[:8]} instead of {ids[:8]}")


def chosen_template(section: TokenizerSection, foreign: ForeignTokenizer, file: Path | None) -> tuple[str, str | None]:
    """Name and text of the template that the recipe chooses, in the form that every Jinja can parse.

    Args:
        file: The verified file of a template that is one.

    Raises:
        RecipeError: The tokenizer lacks a token of the template.
        InputRefused: The file is no text, is absurdly long, or asks for the date in a way that cannot be fixed.
    """
    if section.template == OWN_TEMPLATE:
        name, text = "the model's own" if foreign.template else "", foreign.template
    elif section.template_file is not None:
        if file is None:
            raise RecipeError(f"tokenizer.template: there is no file {section.template}")
        name, text = file.name, file.read_text(encoding="utf-8")
    else:
        name, text = section.template, named_template(section.template, begins_texts(foreign))
        needed = SPECIAL_TOKENS.get(name, ())
        if missing := [token for token in needed if foreign.tokenizer.token_to_id(token) is None]:
            raise RecipeError(
                f"tokenizer.template: {name} needs the tokens {', '.join(missing)}, which this tokenizer lacks; list "
                "them in tokenizer.special_tokens"
            )
    if text is not None and len(text) > _LONGEST_TEMPLATE:
        raise InputRefused(f"the chat template has {len(text):,} characters, and {_LONGEST_TEMPLATE:,} are the most")
    if text is None:
        return name, None
    text = with_date(exported(with_texts(text)), section.date)
    return name, with_added_learned(text) if section.train_added else text


def begins_texts(foreign: ForeignTokenizer) -> bool:
    """Whether the tokenizer puts its start token before a text."""
    start = foreign.special.get("bos_token")
    ids = foreign.tokenizer.encode("a").ids
    return start is not None and ids[:1] == [foreign.tokenizer.token_to_id(start)]


def turn_ends(folder: Path, foreign: ForeignTokenizer) -> tuple[int, ...]:
    """Ids of the tokens that end an answer by the template of a written folder."""
    from training.data.conversations.chat_format import ChatFormat

    return ChatFormat.load(folder).stops


def _report(
    context: StageContext[TokenizerSection], files: OriginFiles, foreign: ForeignTokenizer, written: TokenizerImport
) -> dict[str, float]:
    """Card and samples; the metrics of the stage."""
    plain = load_plain(context.out / TOKENIZER_FILE)
    metrics = {"vocabulary": float(plain.get_vocab_size(with_added_tokens=True))}
    texts = list(_TEXTS)
    if "corpus" in context.inputs:
        split = Split(context.input("corpus").folder / "train")
        texts = [text for batch in split.texts(_MEASURED_BYTES) for text in batch] or texts
        tokens = sum(map(len, encode_texts(plain, texts)))
        metrics["bytes_per_token_training"] = sum(len(text.encode()) for text in texts) / max(tokens, 1)
    write_samples(context.report, [_sample(plain, text[:_EXCERPT]) for text in texts[:_SAMPLES]])

    special = [[role, f"`{token}`", plain.token_to_id(token)] for role, token in sorted(foreign.special.items())]
    added = [["added by the recipe", f"`{token}`", number] for token, number in foreign.added.items()]
    rows: list[list[object]] = [
        ["kind", foreign.kind],
        ["tokens", f"{int(metrics['vocabulary']):,}"],
        ["chat template", f"{written.template}, {written.template_digest[:12]}" if written.template else "none"],
        ["ends of an answer", ", ".join(map(str, written.turn_ends)) or "none"],
    ]
    if "bytes_per_token_training" in metrics:
        rows.append(["bytes per token of training text", f"{metrics['bytes_per_token_training']:.2f}"])
    lines = [
        "Imported as it is: every id stays.",
        "",
        markdown_table(["", ""], rows),
        "",
        markdown_table(["special token", "", "id"], [*special, *added]),
        "",
        *(f"- {note}" for note in foreign.notes),
        "",
        f"Origin: `{(files.gguf or files.folder).name}`. Left out, and not read: "
        f"{', '.join(f'`{name}`' for name in files.left_out) or 'nothing'}",
    ]
    write_card(context.report, "Tokenizer", lines)
    return metrics


def _sample(tokenizer: Tokenizer, text: str) -> dict[str, object]:
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    return {
        "text": text,
        "tokens": len(ids),
        "bytes_per_token": round(len(text.encode()) / max(len(ids), 1), 2),
        "split": "\u00b7".join(tokenizer.decode([number]) for number in ids),
    }
