"""Write a trained model: a plain transformers folder, the same bytes whenever it is made from the same weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from training.engine import card, export_probe
from training.engine.fit import Fit
from training.engine.plots import loss_curve
from training.engine.saved_weights import choose_dtype, sample_weights
from training.engine.session import Session, load_parent
from training.engine.trainer import StepOrdered
from training.errors import RecipeError
from training.model_folder import SAFELY, plain_model
from training.specs.losses import FIRST_LOSSES, FIRST_STEPS, HISTORY, FirstLosses
from training.specs.mixture import Mixture
from training.specs.probe import Probe
from training.tokenizer_folder import used_rows

_TOKENIZER_CONFIG = "tokenizer_config.json"
_SAMPLE_TOKENS = 32
Prompt = tuple[str, bool]  # text, and whether it is asked in chat


def gather_weights(trainer: StepOrdered) -> dict[str, torch.Tensor]:
    """The fp32 weights as a state dict on every rank that holds them whole; every rank must call it.

    Training is over afterwards: no model that is built later is divided among the ranks.

    Raises:
        RecipeError: A weight is not a finite number: the very last step diverged.
    """
    state: Mapping[str, torch.Tensor] | None = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    # As long as a ZeRO 3 configuration exists, transformers divides every model that it builds. Rank 0, which builds
    # one alone, would wait for the other ranks for ever.
    unset_hf_deepspeed_config()

    weights = {name: value.detach().cpu() for name, value in (state or {}).items()}
    broken = [name for name, value in weights.items() if not torch.isfinite(value).all()]
    if broken:
        raise RecipeError(
            f"{len(broken)} weights are not finite after the last step ({broken[0]} for one), so no model is saved: "
            "lower optimizer.learning_rate, or use precision bf16 or fp32"
        )
    return weights


def save_weights(
    out: Path,
    config: PreTrainedConfig,
    weights: Mapping[str, torch.Tensor],
    session: Session,
    taken: Probe,
    parent: str | None = None,
    kept_ends: Sequence[int] = (),
) -> str:
    """Save weights, configuration, generation settings, tokenizer and probe.

    Args:
        out: The artifact's folder; `model/` is made in it.
        config: Of the trained model.
        weights: fp32 state dict of the plain architecture.
        session: The weights are saved in its precision (bf16 for bf16 and fp8) if that keeps what was trained.
        taken: The probe; a sample of the weights is added to it.
        parent: The input that the training began from; None for a base model.
        kept_ends: Ids of the tokens that ended a text of an imported model; a parent's are kept in any case.

    Returns:
        The precision that the weights were saved in, and why.
    """
    names = _parameter_names(config)
    sample = sample_weights(weights, names, session.context.seed)
    before = dict(load_parent(session, parent).named_parameters()) if parent else None
    dtype, why = choose_dtype(weights, before, sample, session.choice.dtype)
    session.context.events.log(f"weights are saved in {why}")

    # Built without memory of its own; the trained tensors are assigned to it.
    folder = out / "model"
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(_clean(config), dtype=dtype)
    model.load_state_dict(
        {name: value.to(dtype) if value.is_floating_point() else value for name, value in weights.items()},
        assign=True,
        strict=True,
    )
    model.tie_weights()
    if parent is not None:
        kept_ends = (*read_ends(session.context.input(parent).folder / "model"), *kept_ends)
    rows = int(config.get_text_config().vocab_size)
    model.generation_config = generation_config(session, rows, kept_ends)

    model.save_pretrained(folder)
    save_tokenizer(session, folder, config)
    export_probe.save(out, taken.model_copy(update={"weights": sample}))
    return why


def save_tokenizer(session: Session, folder: Path, config: PreTrainedConfig) -> None:
    """Put the job's tokenizer beside weights; see `copy_tokenizer`."""
    copy_tokenizer(session.context.input("tokenizer").folder / "tokenizer", folder, config)


def copy_tokenizer(source: Path, folder: Path, config: PreTrainedConfig) -> None:
    """Put a tokenizer beside weights, with the model's number of positions in its configuration.

    `tokenizer.json` and the templates are copied byte by byte, so that a tokenizer's digest stays the same.
    """
    shutil.copytree(source, folder, dirs_exist_ok=True, copy_function=shutil.copyfile)

    settings: dict[str, Any] = json.loads((source / _TOKENIZER_CONFIG).read_text(encoding="utf-8"))
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    if positions is not None:
        settings["model_max_length"] = positions
    (folder / _TOKENIZER_CONFIG).write_text(json.dumps(settings, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _parameter_names(config: PreTrainedConfig) -> list[str]:
    """Names of the plain architecture's parameters, tied ones once."""
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(_clean(config))
    return [name for name, _ in model.named_parameters()]


def generation_config(session: Session, rows: int, kept_ends: Sequence[int] = ()) -> GenerationConfig:
    """Greedy decoding that stops at the end of a turn or of a text.

    Args:
        session: The job.
        rows: Of the model's embedding.
        kept_ends: Ids that ended a text before the training: an end that a model has learnt stays one.
    """
    ends = dict.fromkeys([*session.stops, *kept_ends])
    return greedy(tuple(ends), session.pad, range(used_rows(session.tokenizer), rows))


def greedy(ends: Sequence[int], pad: int, unused: range) -> GenerationConfig:
    """Greedy decoding that stops at the ends and never takes an unused row of the embedding.

    Args:
        ends: Ids of the tokens that end a text.
        pad: Id of the padding token.
        unused: Rows that the tokenizer has no token for. Nothing ever trained them.
    """
    suppressed = {"suppress_tokens": list(unused)} if unused else {}
    return GenerationConfig(eos_token_id=list(ends), pad_token_id=pad, do_sample=False, **suppressed)


def read_ends(folder: Path) -> tuple[int, ...]:
    """Ids of the tokens that end a generated text, by the generation_config.json of a model folder."""
    settings = json.loads((folder / "generation_config.json").read_bytes())
    ends = settings.get("eos_token_id")
    return tuple(end for end in (ends if isinstance(ends, list) else [ends]) if isinstance(end, int))


def report(
    session: Session,
    result: Fit,
    prompts: Sequence[Prompt],
    saved: str,
    phases: Sequence[tuple[int, str]] = (),
    unit: str = "nats per token",
    mixture: Mixture | None = None,
) -> None:
    """Fill `report/` and write the model card. Call it after `save_weights`.

    Args:
        session: The job.
        result: The training.
        prompts: What the saved model is asked for its samples.
        saved: The weights' precision and why, as `save_weights` returns it.
        phases: First step and name of each phase of the curriculum.
        unit: Unit of the loss.
        mixture: What was read of each source, for the cards; the model's own tells it of several sources.
    """
    context = session.context
    title = f"{context.asset}: loss"
    loss_curve(context.report / "loss.png", result.losses, result.history, title, phases, unit)
    rows = "".join(json.dumps(row, sort_keys=True) + "\n" for row in result.history)
    (context.out / HISTORY).write_text(rows, encoding="utf-8")
    first = FirstLosses(
        micro_batch_tokens=context.execution.micro_batch_tokens, losses=tuple(result.losses[:FIRST_STEPS])
    )
    (context.out / FIRST_LOSSES).write_text(first.model_dump_json(), encoding="utf-8")

    context.events.phase("samples")
    samples = generate(session, context.out / "model", prompts)
    (context.report / "samples.json").write_text(json.dumps(samples, ensure_ascii=False, indent=1), encoding="utf-8")

    is_mixed = mixture is not None and len(mixture.sources) > 1
    text = card.write(session, result, saved, mixture if is_mixed else None)
    (context.out / "model" / "README.md").write_text(text, encoding="utf-8")
    page = card.without_front_matter(card.write(session, result, saved, mixture))
    (context.report / "card.md").write_text(page, encoding="utf-8")


def generate(session: Session, folder: Path, prompts: Sequence[Prompt]) -> list[dict[str, str]]:
    """Greedy continuations of at most 32 tokens by a saved model, as `prompt` and `answer`.

    The folder is loaded as others will load it, so the samples show what was saved and not what was trained.
    """
    arguments = SAFELY | {"attn_implementation": session.choice.attention}
    model = AutoModelForCausalLM.from_pretrained(plain_model(folder), **arguments).to(session.runtime.device).eval()
    rows = []
    for text, chat in prompts:
        ids = _prompt_ids(session, text, chat).to(session.runtime.device)
        with torch.inference_mode():
            output = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=_SAMPLE_TOKENS)
        answer = session.tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)
        rows.append({"prompt": text, "answer": answer})
    return rows


def _prompt_ids(session: Session, text: str, chat: bool) -> torch.Tensor:
    """Token ids, int64 [1, length]."""
    if chat:
        return torch.from_numpy(session.chat_format.prompt([{"role": "user", "content": text}])).unsqueeze(0)
    return torch.tensor([session.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)])


def _clean(config: PreTrainedConfig) -> PreTrainedConfig:
    """A copy without the path that it was loaded from, and with the cache that trainers switch off."""
    values: dict[str, Any] = config.to_dict()
    values.pop("_name_or_path", None)
    if "use_cache" in values:
        values["use_cache"] = True
    return type(config).from_dict(values)
