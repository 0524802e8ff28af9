"""base_model without steps: somebody else's model, verified, written and described, ready to be measured."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from training.data.reports import markdown_table, write_samples
from training.data.sources.origins import OriginFiles, origin_files, origin_state
from training.data.tokens.byte_bpe import TOKENIZER_FILE, load_plain
from training.engine import export, export_probe, isolation
from training.engine.imported_weights import fit_tokenizer, logits_of, write_model
from training.engine.model_import import ImportedModel, import_model
from training.engine.saved_weights import sample_weights
from training.errors import GatehouseError, InputRefused
from training.job.context import StageContext
from training.model_folder import load_model
from training.specs.base_model import BaseModelSection
from training.specs.imports import TOKENIZER_IMPORT, TokenizerImport
from training.specs.job import StageResult
from training.specs.probe import Probe
from training.store.store import file_entry
from training.tokenizer_folder import load_tokenizer, tokenizer_ends, used_rows

_SAME = 1e-6  # logits of what was written, and of what was read
_ROW, _SAMPLE_TOKENS = 96, 32
_ABOUT_BYTES = 64 * 2**10
_LICENCE = re.compile(r"^license(?:_name)?: *[\"']?([\w.+-]+)", re.MULTILINE)
# What the probe and the samples are made of, where nothing was trained: prose, code, and another script.
_TEXTS = (
    "The capital of Norway is Oslo, and the capital of France is Paris. Water boils at one hundred degrees.",
    'def read_text(path):\n    """Return the text of a file."""\n    with open(path, encoding="utf-8") as file:\n',
    "In 1969, 600 million people watched two men walk on the Moon; 12 have done so since.",
    "Zażółć gęślą jaźń. \u65e5\u672c\u8a9e\u306e\u6587\u7ae0\u3067\u3059\u3002 \u041c\u043e\u0441\u043a\u0432\u0430",
)
_PROMPTS = ("The capital of France is", "def read_text(path):\n", "Water boils at", "The ")


def for_training(context: StageContext[BaseModelSection], files: OriginFiles, attention: str) -> ImportedModel:
    """An imported model in float32 that fits the job's tokenizer.

    Raises:
        InputRefused: It cannot be imported, or the tokenizer does not fit it.
    """
    context.events.phase("import the model")
    imported = import_model(files, attention)
    tokenizer = load_plain(context.input("tokenizer").folder / TOKENIZER_FILE)
    for note in (*imported.notes, *fit_tokenizer(imported, tokenizer, _added(context))):
        context.events.log(note)
    return imported


def publish_import(context: StageContext[BaseModelSection]) -> StageResult:
    """Import the model of the section's origin, without any training.

    Raises:
        InputRefused: It cannot be imported, the tokenizer does not fit it, or the origin changed meanwhile.
        SourceError: There is no such origin.
    """
    origin = context.section.origin
    assert origin is not None
    if context.execution.threads:
        torch.set_num_threads(context.execution.threads)
    transformers.utils.logging.disable_progress_bar()

    files, state = origin_files(origin), origin_state(origin)
    context.events.phase("import the model")
    imported = import_model(files)
    folder = context.input("tokenizer").folder / "tokenizer"
    plain, tokenizer = load_plain(folder / "tokenizer.json"), load_tokenizer(folder)
    notes = [*imported.notes, *fit_tokenizer(imported, plain, _added(context))]
    rows = isolation.examine(imported.model)
    notes.append(rows.reason)
    for note in notes:
        context.events.log(note)

    context.events.phase("write the model")
    ends, pad = all_ends(imported, tokenizer, folder), int(tokenizer.pad_token_id)
    probed = _probe_rows(plain, imported)
    before = logits_of(imported.model, probed)
    out = context.out / "model"
    write_model(imported, out, ends, pad, used_rows(tokenizer))
    export.copy_tokenizer(folder, out, imported.model.config)
    export_probe.save(context.out, _probe(imported.model, probed, before, context.seed))
    facts = _facts(context, imported, state, "packed" if rows.isolated else "one document each, padded")
    figures = _figures(imported, plain)
    (out / "README.md").write_text(_card(context, imported, files, figures, ends, notes), encoding="utf-8")
    del imported  # the written one takes its place in memory

    context.events.phase("read it again")
    written = load_model(out)
    difference = _difference(written, probed, before)
    _report(context, files, written, tokenizer, {**figures, "logit_difference": difference})
    if origin_state(origin) != state:
        raise InputRefused(f"{files.folder} has changed while it was imported; materialize base_model again")
    return StageResult(metrics={**figures, "logit_difference": difference}, headline="parameters", facts=facts)


def all_ends(imported: ImportedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> tuple[int, ...]:
    """Ids of all tokens that end a text: the model's own, the tokenizer's, and the one that ends a turn.

    Args:
        folder: The tokenizer's; its import wrote down the end of a turn.
    """
    turn = read_import(folder.parent).turn_ends
    ends = dict.fromkeys([*imported.ends, *tokenizer_ends(tokenizer), *turn])
    return tuple(end for end in ends if end < imported.rows)


def read_import(artifact: Path) -> TokenizerImport:
    """What the import of a tokenizer wrote down; nothing where it was trained here."""
    path = artifact / TOKENIZER_IMPORT
    return TokenizerImport.model_validate_json(path.read_bytes()) if path.is_file() else TokenizerImport()


def _added(context: StageContext[BaseModelSection]) -> dict[str, int]:
    return read_import(context.input("tokenizer").folder).added


def _probe_rows(tokenizer: Tokenizer, imported: ImportedModel) -> list[list[int]]:
    """Token ids of the texts, each row no longer than the model's positions."""
    config = imported.model.config.get_text_config()
    longest = min(_ROW, getattr(config, "max_position_embeddings", None) or _ROW)
    encoded = [tokenizer.encode(text, add_special_tokens=False).ids[:longest] for text in _TEXTS]
    rows = [[number for number in ids if number < imported.rows] for ids in encoded]
    return [row for row in rows if len(row) > 1]


def _probe(model: PreTrainedModel, rows: Sequence[Sequence[int]], logits: Sequence[torch.Tensor], seed: int) -> Probe:
    """What the imported model says of the rows before it is written, in float32, and a sample of its weights."""
    logprobs = []
    for row, values in zip(rows, logits, strict=True):
        chosen = values[:-1].log_softmax(-1).gather(-1, torch.tensor(row[1:])[:, None])[:, 0]
        logprobs.append(tuple(min(value, 0.0) for value in chosen.tolist()))
    weights = {name: value.detach() for name, value in model.named_parameters()}
    return Probe(
        rows=tuple(map(tuple, rows)),
        logprobs=tuple(logprobs),
        float32_logprobs=tuple(logprobs),
        weights=sample_weights(weights, list(weights), seed),
    )


def _difference(written: PreTrainedModel, rows: Sequence[Sequence[int]], before: Sequence[torch.Tensor]) -> float:
    pairs = zip(logits_of(written, rows), before, strict=True)
    difference = max(float((left - right).abs().max()) for left, right in pairs)
    if not difference <= _SAME:
        raise GatehouseError(
            f"the written model's logits differ by {difference:.3g} from those of its origin; this is a fault of the "
            "import, and nothing is published"
        )
    return difference


def _facts(context: StageContext[BaseModelSection], imported: ImportedModel, state: str, rows: str) -> dict[str, str]:
    tokenizer = context.input("tokenizer").folder / TOKENIZER_FILE
    return {
        "tokenizer": file_entry(tokenizer).sha256,
        "origin": state,
        "rows": rows,
        "architecture": str(imported.model.config.model_type),
        "stored": ", ".join(f"{count} {kind}" for kind, count in imported.kinds.items()),
    }


def _figures(imported: ImportedModel, tokenizer: Tokenizer) -> dict[str, float]:
    return {
        "parameters": float(imported.parameters),
        "embedding_rows": float(imported.rows),
        "vocabulary": float(tokenizer.get_vocab_size(with_added_tokens=True)),
        "tensors": float(sum(imported.kinds.values())),
    }


def _card(
    context: StageContext[BaseModelSection],
    imported: ImportedModel,
    files: OriginFiles,
    figures: Mapping[str, float],
    ends: Sequence[int],
    notes: Sequence[str],
) -> str:
    """The model's card. It is part of the content, so it names no path and no clock."""
    licence = _licence(files) or "not given"
    stored = ", ".join(f"{count} tensors of {kind}" for kind, count in imported.kinds.items())
    rows = [
        ["architecture", imported.model.config.model_type],
        ["parameters", f"{int(figures['parameters']):,}"],
        ["stored at the origin as", stored],
        ["saved as", str(imported.dtype).removeprefix("torch.")],
        ["rows of the embedding", f"{imported.rows:,}"],
        ["tokens of the tokenizer", f"{int(figures['vocabulary']):,}"],
        ["ends of a text", ", ".join(map(str, ends))],
        ["licence at the origin", licence],
    ]
    settings = json.dumps(imported.settings, sort_keys=True) if imported.settings else "none"
    return "\n".join(
        [
            "---",
            "library_name: transformers",
            "pipeline_tag: text-generation",
            f"license: {licence if licence != 'not given' else 'other'}",
            "---",
            "",
            "# base_model",
            "",
            "A model that was imported as it is, and not trained here. What is measured of it holds for these weights, "
            "and not for others that its name may stand for.",
            "",
            markdown_table(["", ""], rows),
            "",
            *(f"- {note}" for note in notes),
            "",
            f"Generation settings of the origin: `{settings}`. Of these, only the ends of a text are kept.",
            "",
            "## Made from",
            "",
            f"tokenizer `{context.input('tokenizer').manifest.digest}`",
            "",
        ]
    )


def _licence(files: OriginFiles) -> str:
    """The licence that the README or the GGUF file names."""
    if files.gguf is not None:
        from training.data.tokens.gguf_files import gguf_metadata

        return str(gguf_metadata(files.gguf).get("general.license", ""))
    for path in files.about:
        if path.suffix.lower() == ".md":
            with path.open("rb") as file:
                text = file.read(_ABOUT_BYTES).decode("utf-8", errors="replace")
            if found := _LICENCE.search(text):
                return found[1]
    return ""


def _report(
    context: StageContext[BaseModelSection],
    files: OriginFiles,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    metrics: Mapping[str, float],
) -> None:
    """Card with what the content must not hold: where it lay, and what was left out."""
    write_samples(context.report, [_sample(model, tokenizer, prompt) for prompt in _PROMPTS])
    card = (context.out / "model" / "README.md").read_text(encoding="utf-8").split("---\n", 2)[2].lstrip()
    about = ", ".join(path.name for path in files.about) or "none"
    lines = [
        card,
        f"Origin: `{(files.gguf or files.folder).name}`. README and licence there: {about}.",
        "",
        f"Largest difference of the logits before and after writing: {metrics['logit_difference']:.3g}",
        "",
        f"Left out, and not read: {', '.join(f'`{name}`' for name in files.left_out) or 'nothing'}",
        "",
    ]
    (context.report / "card.md").write_text("\n".join(lines), encoding="utf-8")


def _sample(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str) -> dict[str, Any]:
    ids = torch.tensor([tokenizer(prompt, verbose=False)["input_ids"]])
    generator: Any = model
    with torch.inference_mode():
        output = generator.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=_SAMPLE_TOKENS)
    answer = tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)
    return {"prompt": prompt, "answer": answer}
