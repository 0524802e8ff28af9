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
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from training.data.sources.bounded_memory import bounded_memory
from training.data.sources.origins import CONFIG, GENERATION, INDEX, ONE_FILE, WEIGHTS, OriginFiles
from training.data.tokens.byte_bpe import rows_of
from training.data.tokens.gguf_files import GgufHeader, read_gguf
from training.engine.causality import NOT_CAUSAL, looks_ahead
from training.errors import InputRefused
from training.job.outcome import is_out_of_memory
from training.model_folder import MAX_JSON_BYTES, SAFELY, best_attention, load_model

# Loading takes a file in its own precision and again in float32; a quantised one grows about eightfold.
_MEMORY_PER_BYTE, _MEMORY_PER_GGUF_BYTE, _MEMORY = 4, 12, 2 * 2**30
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt", ".msgpack", ".h5")
_FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_CODE = "auto_map"
# Each says how a model is computed on some machine, and nothing of what it is.
_DROPPED = (
    _CODE, "attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation",
    "_name_or_path", "transformers_version", "torch_dtype", "dtype", "device_map",
)  # fmt: skip
_REFUSED = ("transformers_weights", "fusion_config")
_SUBCONFIGS = ("vision_config", "audio_config", "speech_config")
# In a GGUF file, and no weight of the model.
_GGUF_EXTRAS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
_NAMED = 5  # tensors in a message


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


def origin_model_type(files: OriginFiles) -> str:
    """transformers' model type of an origin, without reading its weights.

    Raises:
        InputRefused: It is none that can be imported.
    """
    if files.gguf is None:
        return str(_configuration(files)[0]["model_type"])
    from transformers import AutoConfig

    read_gguf(files.gguf)
    return str(AutoConfig.from_pretrained(files.folder, gguf_file=files.gguf.name, local_files_only=True).model_type)


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
        raise InputRefused(f"{files.folder}: {len(broken)} tensors hold numbers that are not finite: {_some(broken)}")
    try:
        ahead = looks_ahead(model)
    except (ValueError, IndexError):  # a model that answers nothing, or one of fewer tokens than the trial has
        ahead = False
    except Exception as error:  # a configuration that makes no sense leads to errors of every kind
        if is_out_of_memory(error):
            raise  # no fault of the model
        raise InputRefused(f"{files.gguf or files.folder}: the model does not run: {_brief(error)}") from error
    if ahead:
        raise InputRefused(f"{files.folder}: {NOT_CAUSAL.format(model.config.model_type)}")
    return imported


def _of_folder(files: OriginFiles, attention: str) -> ImportedModel:
    config, notes = _configuration(files)
    shapes, kinds = _tensors(files)
    generation, generation_notes = _generation(files, config)
    weights = sum(path.stat().st_size for path in files.model)
    attention = attention or best_attention(config["model_type"])
    model, tie_notes = _loaded(files, config, generation, attention, weights)
    floats = {_FLOATS[kind] for kind in kinds if kind in _FLOATS}
    dtype = floats.pop() if len(floats) == 1 and torch.float64 not in floats else torch.float32
    ends = _ends(generation, config)
    notes += [*generation_notes, *tie_notes]
    return ImportedModel(model, dtype, kinds, ends, generation, tuple(notes))


def _configuration(files: OriginFiles) -> tuple[dict[str, Any], list[str]]:
    """The configuration without what names code or a machine, and what was left out of it.

    Raises:
        InputRefused: There is none, or it describes nothing that can be imported.
    """
    path = files.folder / CONFIG
    if path not in files.model:
        raise InputRefused(f"{files.folder} holds no {CONFIG}{_instead(files)}")
    config = _read(path)

    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        if _CODE in config:
            raise InputRefused(
                f"{path}: the model type {str(kind)[:60]!r} needs code of the folder (auto_map), and no code of it is "
                "run; take a model that transformers knows"
            )
        raise InputRefused(
            f"{path}: transformers {_version()} has no architecture {str(kind)[:60]!r}; take a model that it knows"
        )
    for key in _REFUSED:
        if key in config:
            raise InputRefused(f"{path}: {key} is refused: a model is read from its safetensors alone")
    if quantized := config.get("quantization_config"):
        method = quantized.get("quant_method", "unknown") if isinstance(quantized, dict) else "unknown"
        raise InputRefused(
            f"{path}: the weights are quantised ({str(method)[:40]}) and cannot be trained; take the folder with the "
            "weights in bf16, or a GGUF file"
        )
    _require_causal(path, config, kind)

    notes = [f"{key} of {CONFIG} is left out: no code of a folder is run" for key in (_CODE,) if key in config]
    return {key: value for key, value in config.items() if key not in _DROPPED}, notes


def _require_causal(path: Path, config: Mapping[str, Any], kind: str) -> None:
    if part := next((name for name in _SUBCONFIGS if config.get(name)), ""):
        raise InputRefused(f"{path}: it has a {part}: models of pictures or sound are not imported, only those of text")
    config_class = CONFIG_MAPPING[kind]
    named = config.get("architectures")
    names = [str(name) for name in named] if isinstance(named, list) else []
    causal = MODEL_FOR_CAUSAL_LM_MAPPING[config_class] if config_class in MODEL_FOR_CAUSAL_LM_MAPPING else None
    if causal is None or (names and causal.__name__ not in names and not _is_causal_name(names)):
        raise InputRefused(
            f"{path}: {', '.join(names)[:100] or kind} is no causal language model; take one whose class ends in "
            "ForCausalLM, or GPT2LMHeadModel"
        )


def _is_causal_name(names: Sequence[str]) -> bool:
    return any(name.endswith("ForCausalLM") for name in names)


def _instead(files: OriginFiles) -> str:
    """What a folder without a model holds, in words."""
    names = [*files.left_out, *(path.name for path in files.tokenizer)]
    if "adapter_config.json" in names:
        return ": it is an adapter; merge it into its model first, and import that"
    if ggufs := [name for name in files.left_out if name.lower().endswith(".gguf")]:
        return f"; name one of its GGUF files as `gguf`: {_some(ggufs)}"
    return "; give the folder that save_pretrained wrote"


def _tensors(files: OriginFiles) -> tuple[dict[str, tuple[int, ...]], dict[str, int]]:
    """Name to shape of every tensor by the headers of the files, and type to number of tensors.

    Raises:
        InputRefused: There are no safetensors, a shard is missing or damaged, or the index says something else.
    """
    paths = [path for path in files.model if WEIGHTS.fullmatch(path.name)]
    names = {path.name for path in paths}
    if not paths:
        pickles = [name for name in files.left_out if name.endswith(_PICKLES)]
        if pickles:
            raise InputRefused(
                f"{files.folder} holds its weights as pickles only ({_some(pickles)}), which can run code; save them "
                "as safetensors:\n  AutoModelForCausalLM.from_pretrained(folder).save_pretrained(another_folder)"
            )
        if files.folder / INDEX not in files.model:
            raise InputRefused(f"{files.folder} holds no weights in safetensors ({ONE_FILE}){_instead(files)}")

    shapes: dict[str, tuple[int, ...]] = {}
    holders: dict[str, str] = {}
    kinds: dict[str, int] = {}
    index = _index(files) if ONE_FILE not in names else None
    for path in paths:
        try:
            with safe_open(path, framework="pt") as weights:
                for name in weights.keys():
                    part = weights.get_slice(name)
                    if name in holders:
                        raise InputRefused(f"{path}: the tensor {name} is in {holders[name]} too")
                    shapes[name], holders[name] = tuple(part.get_shape()), path.name
                    kinds[part.get_dtype()] = kinds.get(part.get_dtype(), 0) + 1
        except (SafetensorError, OSError, ValueError) as error:
            raise InputRefused(
                f"{path} is damaged or cut short ({path.stat().st_size:,} bytes): {str(error)[:160]}; fetch it again"
            ) from error

    if index is not None and index != holders:
        wrong = sorted(name for name in index.keys() | holders.keys() if index.get(name) != holders.get(name))
        first = wrong[0]
        raise InputRefused(
            f"{files.folder / INDEX} is not the index of these files: it puts {len(wrong)} tensors elsewhere, such as "
            f"{first} into {index.get(first, 'no file')}, which is in {holders.get(first, 'none')}"
        )
    unknown = sorted(kind for kind in kinds if kind not in _FLOATS and not kind.startswith(("I", "U", "BOOL")))
    if unknown:
        raise InputRefused(f"{files.folder}: weights of the type {', '.join(unknown)} are not read; take bf16 or fp32")
    return shapes, kinds


def _index(files: OriginFiles) -> dict[str, str]:
    """Tensor to file by the index.

    Raises:
        InputRefused: It is missing or malformed, or a file that it names is missing.
    """
    path = files.folder / INDEX
    if path not in files.model:
        raise InputRefused(f"{files.folder} holds shards and no {INDEX}; fetch it again")
    index = _read(path).get("weight_map")
    if not isinstance(index, dict) or not all(isinstance(file, str) for file in index.values()):
        raise InputRefused(f"{path} holds no weight_map of tensor to file")
    names = {file.name for file in files.model}
    missing = sorted(file for file in set(index.values()) if file not in names or not WEIGHTS.fullmatch(file))
    if missing:
        raise InputRefused(
            f"{files.folder}: {len(missing)} of the {len(set(index.values()))} files that {INDEX} names are missing: "
            f"{_some(missing)}; fetch them"
        )
    return dict(index)


def _generation(files: OriginFiles, config: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The generation settings that can be saved, and what was repaired.

    A setting that contradicts another one is an error of transformers when a model is saved: after all the training.
    """
    path = files.folder / GENERATION
    if path not in files.model:
        return {}, []
    given = {key: value for key, value in _read(path).items() if key not in ("transformers_version", _CODE)}
    given.pop("_from_model_config", None)
    return _savable(given, path.name)


def _savable(given: dict[str, Any], name: str) -> tuple[dict[str, Any], list[str]]:
    reason = _refusal(given)
    if not reason:
        return given, []
    # Without sampling, the settings of sampling mean nothing: they are what contradicts.
    sampling = {"temperature", "top_p", "top_k", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "top_h"}
    left_out = sorted(sampling & given.keys())
    kept = {key: value for key, value in given.items() if key not in sampling}
    if _refusal(kept):
        kept = {key: given[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if key in given}
        left_out = sorted(given.keys() - kept.keys())
    return kept, [f"{name} cannot be saved as it is; left out of it: {', '.join(left_out)}"]


def _refusal(settings: Mapping[str, Any]) -> str:
    """Why transformers does not save generation settings; empty if it does."""
    with TemporaryDirectory() as folder:
        try:
            GenerationConfig(**settings).save_pretrained(folder)
        except Exception as error:  # settings that make no sense lead to errors of every kind
            return str(error)[:200] or type(error).__name__
    return ""


def _ends(generation: Mapping[str, Any], config: Mapping[str, Any]) -> tuple[int, ...]:
    ends: list[int] = []
    for settings in (generation, config):
        given = settings.get("eos_token_id")
        ends += [end for end in (given if isinstance(given, list) else [given]) if isinstance(end, int)]
    return tuple(dict.fromkeys(ends))


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
                f"({_brief(error)}); config.json describes another model, or the machine is too small"
            ) from error
        raise InputRefused(f"{files.gguf or files.folder}: transformers cannot load it: {_brief(error)}") from error
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
            f"{_some(missing)}{hint}"
        )
    if wrong := sorted(report["mismatched_keys"]):
        shown = ", ".join(f"{name} is {_shape(has)}, and {CONFIG} makes it {_shape(asks)}" for name, has, asks in wrong)
        raise InputRefused(f"{files.gguf or files.folder}: {len(wrong)} tensors have another shape: {shown[:400]}")
    if unexpected := sorted(map(str, report["unexpected_keys"])):
        raise InputRefused(
            f"{files.gguf or files.folder}: {len(unexpected)} tensors belong to nothing that {CONFIG} describes: "
            f"{_some(unexpected)}"
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
    values = {key: value for key, value in values.items() if key not in (*_DROPPED, "quantization_config")}
    values.pop("_model_name_or_path", None)
    config = type(loaded.config).from_dict(values)
    rope = _rope_of(files.gguf, header, config)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=attention)
    model.load_state_dict(loaded.state_dict(), assign=True, strict=True)
    model.tie_weights()
    _restore_buffers(model, loaded, bool(rope))
    _require_all_values(files.gguf, header, model)

    stored = header.kinds
    end = header.metadata.get("tokenizer.ggml.eos_token_id")
    ends = tuple(
        dict.fromkeys(
            int(value)
            for value in (end, header.metadata.get("tokenizer.ggml.eot_token_id"))
            if isinstance(value, int) or hasattr(value, "__index__")
        )
    )
    quantized = [kind for kind in stored if kind not in _FLOATS]
    notes = [f"dequantised from {', '.join(quantized)}"] if quantized else []
    notes += [rope] if rope else []
    return ImportedModel(model, torch.float32, stored, ends, {}, tuple(notes))


def _restore_buffers(model: PreTrainedModel, loaded: PreTrainedModel, is_other_rope: bool) -> None:
    """Buffers that are in no state dict, such as the frequencies of rotary positions, still have no memory."""
    donor = loaded
    if is_other_rope:
        donor = AutoModelForCausalLM.from_config(_shallow(model.config), dtype=torch.float32)
    buffers = dict(donor.named_buffers())
    for name, buffer in list(model.named_buffers()):
        if buffer.is_meta:
            owner, _, last = name.rpartition(".")
            model.get_submodule(owner)._buffers[last] = buffers[name].clone()
    for name, module in model.named_modules():
        if hasattr(module, "original_inv_freq") and "inv_freq" in module._buffers:
            module.original_inv_freq = module._buffers["inv_freq"]
    assert not any(value.is_meta for value in (*model.parameters(), *model.buffers()))


def _shallow(config: Any) -> Any:
    values = config.to_dict() | {"num_hidden_layers": 1}
    values.pop("layer_types", None)
    return type(config).from_dict(values)


def _rope_of(path: Path, header: GgufHeader, config: Any) -> str:
    """Set the scaling of rotary positions that Llama 3.1 and later have, from the factors in the file.

    transformers' reader of GGUF files leaves the factors out, and the model would answer differently.

    Returns:
        What was set, in words; empty where there are no factors.

    Raises:
        InputRefused: The factors are of another kind.
    """
    extras = [tensor.name for tensor in header.tensors if tensor.name in _GGUF_EXTRAS]
    kind = header.metadata.get(f"{header.metadata.get('general.architecture')}.rope.scaling.type")
    if not extras and kind in (None, "none"):
        return ""
    raise InputRefused(
        f"{path}: its rotary positions are scaled ({', '.join(extras) or kind}), which transformers does not read from "
        "a GGUF file; import the folder of safetensors of this model"
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


def embedding_rows(model: PreTrainedModel) -> int:
    """Rows of the embedding: ids from 0 to this number minus one can be looked up."""
    return int(model.get_input_embeddings().weight.shape[0])


def fit_tokenizer(imported: ImportedModel, tokenizer: Tokenizer, added: Mapping[str, int]) -> tuple[str, ...]:
    """Give tokens of the recipe their rows, and refuse a tokenizer with words that the model has no row for.

    A row of a new token is the mean of the others (Hewitt, 2021, "Initializing New Word Embeddings for Pretrained
    Language Models"). Rows beyond the tokenizer's are kept: many models have more than tokens.

    Args:
        imported: Its model is changed in place.
        tokenizer: The one of the same job.
        added: Special tokens of the recipe to id.

    Returns:
        What was done and found, in words.

    Raises:
        InputRefused: A text could contain a token that has no row.
    """
    before, needed = imported.rows, rows_of(tokenizer)
    special = {number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    outside = {token: number for token, number in vocabulary.items() if number >= before and token not in added}
    if words := sorted(token for token, number in outside.items() if number not in special):
        raise InputRefused(
            f"the tokenizer does not fit the model: its token {words[0]!r} has the id {vocabulary[words[0]]}, and the "
            f"embedding has {before:,} rows ({len(words)} tokens are without one); take the tokenizer of this model"
        )

    notes = [f"{len(vocabulary):,} tokens, {before:,} rows of the embedding"]
    if added and needed > before:
        imported.model.resize_token_embeddings(needed, mean_resizing=False)
        notes.append(f"the embedding grew from {before:,} to {needed:,} rows for {', '.join(added)}")
    elif outside:
        notes.append(f"without a row, and never to be used: {_some(sorted(outside))}")
    _fill_with_mean(imported.model, sorted({*added.values(), *range(before, imported.rows)}))
    return tuple(notes)


@torch.no_grad()
def _fill_with_mean(model: PreTrainedModel, rows: Sequence[int]) -> None:
    if not rows:
        return
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    tensors = {id(embedding.weight): embedding.weight}
    for name in ("weight", "bias"):
        value = getattr(head, name, None)
        if value is not None:
            tensors[id(value)] = value
    for tensor in tensors.values():
        others = torch.ones(len(tensor), dtype=torch.bool)
        others[list(rows)] = False
        tensor[list(rows)] = tensor[others].double().mean(0).to(tensor.dtype)


def write_model(imported: ImportedModel, folder: Path, ends: Sequence[int], pad: int) -> None:
    """Write configuration, weights and generation settings as the plain folder that all stages read.

    Args:
        imported: The model; its weights keep their own type.
        folder: `model/` of the artifact.
        ends: All tokens that end a text.
        pad: Id of the padding token.
    """
    model = imported.model
    values = {key: value for key, value in model.config.to_dict().items() if key not in _DROPPED}
    values.pop("quantization_config", None)
    if "use_cache" in values:
        values["use_cache"] = True
    config = type(model.config).from_dict(values)
    with torch.device("meta"):
        plain: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=imported.dtype)
    weights = {
        name: value.to(imported.dtype) if value.is_floating_point() else value
        for name, value in model.state_dict().items()
    }
    if model.get_output_embeddings() is not None and not _is_tied(model):
        assert not getattr(config.get_text_config(), "tie_word_embeddings", False)
    plain.load_state_dict(weights, assign=True, strict=True)
    plain.tie_weights()
    plain.generation_config = GenerationConfig(eos_token_id=list(ends), pad_token_id=pad, do_sample=False)
    plain.save_pretrained(folder)


def _is_tied(model: PreTrainedModel) -> bool:
    return model.get_output_embeddings().weight is model.get_input_embeddings().weight


@torch.inference_mode()
def logits_of(model: PreTrainedModel, rows: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """Logits, float32 [length, vocabulary], of each row of token ids by itself."""
    return [model(input_ids=torch.tensor([list(row)]), use_cache=False).logits[0].float() for row in rows]


def written_difference(folder: Path, rows: Sequence[Sequence[int]], before: Sequence[torch.Tensor]) -> float:
    """Largest difference between the logits of a written folder and those that the model had before.

    Raises:
        InputRefused: The folder does not load.
    """
    written = logits_of(load_model(folder), rows)
    return max(float((left - right).abs().max()) for left, right in zip(written, before, strict=True))


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise InputRefused(f"{path} is larger than {MAX_JSON_BYTES >> 20} MB")
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise InputRefused(f"{path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InputRefused(f"{path} is not JSON: {_brief(error)}") from error
    if not isinstance(value, dict):
        raise InputRefused(f"{path} holds no JSON object")
    return value


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")


def _brief(error: Exception) -> str:
    return str(error).strip()[:300] or type(error).__name__


def _version() -> str:
    import transformers

    return str(transformers.__version__)
