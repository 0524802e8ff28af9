"""A model of somebody else's: verified, loaded in float32, and written as the plain folder that all stages read.

transformers fills what a folder lacks with random numbers and throws away what it does not know, with a warning at
most. So everything is compared here: files with the index, tensors with the architecture, shapes, the tied matrix, the
tokenizer's ids with the rows of the embedding. What was written is read again, and must give the same logits.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from training.data.sources.origins import CONFIG, GENERATION, OriginFiles
from training.data.tokens.gguf_files import GgufHeader, read_gguf
from training.engine.causality import NOT_CAUSAL, looks_ahead
from training.engine.origin_folder import (
    DROPPED,
    FLOATS,
    has_causal_class,
    read_configuration,
    read_ends,
    read_generation,
    read_tensors,
    some,
)
from training.errors import InputRefused
from training.job.bounded_memory import bounded_memory
from training.job.outcome import is_out_of_memory
from training.model_folder import SAFELY, best_attention
from training.tokenizer_folder import brief

# Loading takes a file in its own precision and again in float32; a quantised one grows about eightfold.
_MEMORY_PER_BYTE, _MEMORY_PER_GGUF_BYTE, _MEMORY = 4, 12, 2 * 2**30
# In a GGUF file, and no weight of the model.
_GGUF_EXTRAS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")


@dataclass(frozen=True)
class ImportedModel:
    """A model in float32 and on the CPU, with what was found out about it.

    Attributes:
        dtype: What its weights are saved in: their own type where they share one.
        kinds: Type of the stored values to number of tensors, as the origin has them.
        ends: Ids of the tokens that end a generated text.
        settings: The origin's generation settings, by name.
        notes: What was repaired or decided, in words.
    """

    model: PreTrainedModel
    dtype: torch.dtype
    kinds: dict[str, int]
    ends: tuple[int, ...]
    settings: dict[str, Any]
    notes: tuple[str, ...]

    @property
    def parameters(self) -> int:
        """Number of weights; tied ones count once."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def rows(self) -> int:
        """Rows of the embedding."""
        return embedding_rows(self.model)


def embedding_rows(model: PreTrainedModel) -> int:
    """Rows of the embedding: ids from 0 to this number minus one can be looked up."""
    return int(model.get_input_embeddings().weight.shape[0])


def origin_model_type(files: OriginFiles) -> str:
    """transformers' model type of an origin, without reading its weights.

    Raises:
        InputRefused: It is none that can be imported.
    """
    if files.gguf is None:
        return str(read_configuration(files)[0]["model_type"])
    return str(_gguf_configuration(files).model_type)


def model_on_meta(files: OriginFiles) -> PreTrainedModel:
    """The model of an origin without its weights, after its headers were verified.

    Raises:
        InputRefused: It cannot be imported, as far as its headers tell.
    """
    if files.gguf is None:
        values, _ = read_configuration(files)
        read_tensors(files)
        try:
            config: Any = AutoConfig.for_model(**values)
        except Exception as error:  # a configuration that makes no sense leads to errors of every kind
            raise InputRefused(f"{files.folder / CONFIG}: transformers cannot read it: {brief(error)}") from error
    else:
        config = _gguf_configuration(files)
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(
                config, dtype=torch.float32, attn_implementation=best_attention(config.model_type)
            )
    except Exception as error:
        raise InputRefused(f"{files.gguf or files.folder}: transformers cannot build it: {brief(error)}") from error
    assert isinstance(model, PreTrainedModel)
    return model


def _gguf_configuration(files: OriginFiles) -> Any:
    assert files.gguf is not None
    read_gguf(files.gguf)
    try:
        config = AutoConfig.from_pretrained(files.folder, gguf_file=files.gguf.name, local_files_only=True)
    except Exception as error:  # the library raises errors of every kind
        raise InputRefused(f"{files.gguf}: transformers cannot read it: {brief(error)}") from error
    if not has_causal_class(type(config)):
        raise InputRefused(f"{files.gguf}: {config.model_type} is no causal language model")
    return config


def import_model(files: OriginFiles, attention: str = "") -> ImportedModel:
    """Verify an origin and load it.

    Args:
        files: The origin's.
        attention: transformers' attention implementation; by default the best one that the architecture has.

    Raises:
        InputRefused: It is no causal language model in safetensors or GGUF, or it is damaged or incomplete.
    """
    imported = _of_gguf(files, attention) if files.gguf else _of_folder(files, attention)
    model = imported.model.eval()
    broken = [name for name, value in model.named_parameters() if not torch.isfinite(value).all()]
    if broken:
        raise InputRefused(f"{files.folder}: {len(broken)} tensors hold numbers that are not finite: {some(broken)}")
    try:
        ahead = looks_ahead(model)
    except (ValueError, IndexError):  # a model that answers nothing, or one of fewer tokens than the trial has
        ahead = False
    except Exception as error:  # a configuration that makes no sense leads to errors of every kind
        if is_out_of_memory(error):
            raise  # no fault of the model
        raise InputRefused(f"{files.gguf or files.folder}: the model does not run: {brief(error)}") from error
    if ahead:
        raise InputRefused(f"{files.folder}: {NOT_CAUSAL.format(model.config.model_type)}")
    return imported


def _of_folder(files: OriginFiles, attention: str) -> ImportedModel:
    config, notes = read_configuration(files)
    kinds = read_tensors(files)
    generation, generation_notes = read_generation(files, config)
    weights = sum(path.stat().st_size for path in files.model)
    attention = attention or best_attention(config["model_type"])
    model, tie_notes = _loaded(files, config, generation, attention, weights)
    floats = {FLOATS[kind] for kind in kinds if kind in FLOATS}
    dtype = floats.pop() if len(floats) == 1 and torch.float64 not in floats else torch.float32
    ends = read_ends(generation, config)
    notes += [*generation_notes, *tie_notes]
    return ImportedModel(model, dtype, kinds, ends, generation, tuple(notes))


def _loaded(
    files: OriginFiles, config: Mapping[str, Any], generation: Mapping[str, Any], attention: str, weights: int
) -> tuple[PreTrainedModel, list[str]]:
    """The model of a folder of which only the weights' files and a cleaned configuration are shown to transformers."""
    with TemporaryDirectory() as staged:
        folder = Path(staged)
        (folder / CONFIG).write_text(json.dumps(config), encoding="utf-8")
        if generation:
            (folder / GENERATION).write_text(json.dumps(generation), encoding="utf-8")
        for path in files.model:
            if path.name not in (CONFIG, GENERATION):
                os.symlink(path.resolve(), folder / path.name)
        model, report = _from_pretrained(files, folder, _MEMORY_PER_BYTE * weights + _MEMORY, attention)
    _require_all(files, report, config)
    return model, _settle_tie(model)


def _from_pretrained(
    files: OriginFiles, folder: Path, memory: int, attention: str, **more: Any
) -> tuple[PreTrainedModel, dict[str, Any]]:
    arguments = {key: value for key, value in SAFELY.items() if not (more and key == "use_safetensors")}
    try:
        with bounded_memory(memory):
            model, report = AutoModelForCausalLM.from_pretrained(
                folder,
                **arguments | {"attn_implementation": attention},
                dtype=torch.float32,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **more,
            )
    except Exception as error:  # a configuration that makes no sense leads to errors of every kind
        if is_out_of_memory(error):
            raise InputRefused(
                f"{files.folder}: loading it takes more than {memory / 2**30:.1f} GiB, which its files do not explain "
                f"({brief(error)}); config.json describes another model, or the machine is too small"
            ) from error
        raise InputRefused(f"{files.gguf or files.folder}: transformers cannot load it: {brief(error)}") from error
    assert isinstance(model, PreTrainedModel)
    return model, report


def _require_all(files: OriginFiles, report: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Refuse what transformers fills with random numbers or throws away."""
    if missing := sorted(report["missing_keys"]):
        hint = ""
        if config.get("tie_word_embeddings") is False and any("lm_head" in name for name in missing):
            hint = "; if the head is the embedding, write tie_word_embeddings: true into config.json"
        raise InputRefused(
            f"{files.gguf or files.folder}: {len(missing)} tensors that {CONFIG} asks for are in no file: "
            f"{some(missing)}{hint}"
        )
    if wrong := sorted(report["mismatched_keys"]):
        shown = ", ".join(f"{name} is {_shape(has)}, and {CONFIG} makes it {_shape(asks)}" for name, has, asks in wrong)
        raise InputRefused(f"{files.gguf or files.folder}: {len(wrong)} tensors have another shape: {shown[:400]}")
    if unexpected := sorted(map(str, report["unexpected_keys"])):
        raise InputRefused(
            f"{files.gguf or files.folder}: {len(unexpected)} tensors belong to nothing that {CONFIG} describes: "
            f"{some(unexpected)}"
        )


def _settle_tie(model: PreTrainedModel) -> list[str]:
    """Let the configuration say whether head and embedding are one matrix, as they are.

    A flag that says they are, beside two different matrices, makes other tools throw the head away.
    """
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    config = model.config.get_text_config()
    if head is None or embedding is None or head.weight is embedding.weight:
        return []
    if not getattr(config, "tie_word_embeddings", False):
        return []
    if torch.equal(head.weight, embedding.weight):
        head.weight = embedding.weight
        return []
    for part in {id(config): config, id(model.config): model.config}.values():
        part.tie_word_embeddings = False
    return [
        f"{CONFIG} said that head and embedding are one matrix, and the file holds two different ones: both are kept, "
        "and tie_word_embeddings is false"
    ]


def _of_gguf(files: OriginFiles, attention: str) -> ImportedModel:
    assert files.gguf is not None
    header = read_gguf(files.gguf)
    attention = attention or best_attention(origin_model_type(files))
    memory = _MEMORY_PER_GGUF_BYTE * files.gguf.stat().st_size + _MEMORY
    loaded, report = _from_pretrained(files, files.folder, memory, attention, gguf_file=files.gguf.name)
    _require_all(files, report, {})

    # Loaded from a GGUF file, a model keeps its quantizer and cannot be saved. One without it takes the weights over.
    values = loaded.config.to_dict()
    values = {key: value for key, value in values.items() if key not in (*DROPPED, "quantization_config")}
    values.pop("_model_name_or_path", None)
    config = type(loaded.config).from_dict(values)
    _require_plain_rope(files.gguf, header)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=attention)
    model.load_state_dict(loaded.state_dict(), assign=True, strict=True)
    model.tie_weights()
    _restore_buffers(model, loaded)
    _require_all_values(files.gguf, header, model)

    stored = header.kinds
    named = (header.metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot"))
    ends = tuple(dict.fromkeys(int(end) for end in named if end is not None))
    quantized = [kind for kind in stored if kind not in FLOATS]
    notes = [f"dequantised from {', '.join(quantized)}"] if quantized else []
    return ImportedModel(model, torch.float32, stored, ends, {}, tuple(notes))


def _restore_buffers(model: PreTrainedModel, loaded: PreTrainedModel) -> None:
    """Give buffers that are in no state dict, such as the frequencies of rotary positions, their values."""
    values = dict(loaded.named_buffers())
    for name, buffer in list(model.named_buffers()):
        if buffer.is_meta:
            owner, _, last = name.rpartition(".")
            setattr(model.get_submodule(owner), last, values[name].clone())
    assert not any(value.is_meta for value in (*model.parameters(), *model.buffers()))


def _require_plain_rope(path: Path, header: GgufHeader) -> None:
    """Refuse scaled rotary positions, which Llama 3.1 and later have.

    transformers' reader of GGUF files leaves their factors out, and the model would answer differently.
    """
    extras = [tensor.name for tensor in header.tensors if tensor.name in _GGUF_EXTRAS]
    kind = header.metadata.get(f"{header.metadata.get('general.architecture')}.rope.scaling.type")
    if extras or kind not in (None, "none"):
        raise InputRefused(
            f"{path}: its rotary positions are scaled ({', '.join(extras) or kind}), which transformers does not read "
            "from a GGUF file; import the folder of safetensors of this model"
        )


def _require_all_values(path: Path, header: GgufHeader, model: PreTrainedModel) -> None:
    """Every value of the file must be in the model: transformers leaves out what it has no name for."""
    held = sum(tensor.values for tensor in header.tensors if tensor.name not in _GGUF_EXTRAS)
    buffers = {name for name, _ in model.named_buffers()}
    has = sum(value.numel() for name, value in model.state_dict().items() if name in buffers)
    has += sum(parameter.numel() for parameter in model.parameters())
    if held != has:
        raise InputRefused(
            f"{path}: the file holds {held:,} values and the model {has:,}: transformers does not read all of it; "
            "import the folder of safetensors of this model"
        )


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))
