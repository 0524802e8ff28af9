"""Model folders that somebody made to do harm, and the two ways in which a model folder is read."""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from training.data.conversations.chat_template import write_templates
from training.data.tokens.byte_bpe import train_bpe
from training.evaluation.generation import sound
from training.evaluation.models import LoadFailed, load
from training.evaluation.round_trip import awkward_conversations, fault
from training.job.context import InputArtifact
from training.specs.artifacts import Manifest
from training.specs.tokenizer import END_OF_TEXT, END_OF_TURN, PAD, SPECIAL_TOKENS
from training.store.store import file_entry

CANARY = "canary.txt"
WEIGHTS = "model.safetensors"
_EVIL = (
    "open({canary!r}, 'w').write('code ran')\n"
    "class EvilConfig: pass\nclass EvilModel: pass\nclass EvilTokenizer: pass\n"
)


class Payload:
    """Unpickled, it makes the canary."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.canary), "w")


def model_folder(folder: Path) -> Path:
    """A tiny model as training exports one."""
    folder.mkdir(parents=True)
    tokenizer = train_bpe(["the path of the file is read by the reader of the files"] * 20, 270, 2)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "eos_token": END_OF_TEXT,
                "pad_token": PAD,
                "clean_up_tokenization_spaces": False,
                "additional_special_tokens": [token for token in SPECIAL_TOKENS if token not in (END_OF_TEXT, PAD)],
            }
        )
    )
    write_templates(folder)
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=270,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=1024,
            tie_word_embeddings=False,
        )
    )
    ends = [tokenizer.token_to_id(token) for token in (END_OF_TURN, END_OF_TEXT)]
    model.generation_config = GenerationConfig(eos_token_id=ends, pad_token_id=tokenizer.token_to_id(PAD))
    model.save_pretrained(folder)
    return folder


def evaluated(arguments: list[str]) -> int:
    """Load a folder as an evaluation does, and use it."""
    folder = Path(arguments[0])
    facts = {"tokenizer": file_entry(folder / "model" / "tokenizer.json").sha256}
    manifest = Manifest(
        asset="sft_model",
        version="1",
        stage="x",
        recipe="r",
        identity="",
        fingerprint="",
        digest="",
        files={},
        inputs={},
        metrics={},
        facts=facts,
        section={},
        seed=0,
        started_at=0,
        seconds=0,
    )
    try:
        loaded = load(InputArtifact(folder, manifest), torch.device("cpu"))
        wrong = {name: fault(loaded.tokenizer, turns) for name, turns in awkward_conversations().items()}
        print(f"faults: {wrong['plain']}")
        print(f"unsound: {sound(loaded, [loaded.prompt('Hello', True)], 8)}")
    except LoadFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _edit(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def pickle_beside(model: Path, canary: Path) -> None:
    torch.save({"x": Payload(canary)}, model / "pytorch_model.bin")


def pickle_instead(model: Path, canary: Path) -> None:
    (model / WEIGHTS).unlink()
    pickle_beside(model, canary)


def training_arguments(model: Path, canary: Path) -> None:
    torch.save(Payload(canary), model / "training_args.bin")


def stray_pickle(model: Path, canary: Path) -> None:
    (model / "model.pt").write_bytes(pickle.dumps(Payload(canary)))


def model_code(model: Path, canary: Path) -> None:
    (model / "modeling_evil.py").write_text(_EVIL.format(canary=str(canary)))
    _edit(
        model / "config.json",
        auto_map={"AutoConfig": "modeling_evil.EvilConfig", "AutoModelForCausalLM": "modeling_evil.EvilModel"},
    )


def model_code_of_an_unknown_kind(model: Path, canary: Path) -> None:
    model_code(model, canary)
    _edit(model / "config.json", model_type="evil")


def code_map_alone(model: Path, canary: Path) -> None:
    _edit(model / "config.json", model_type="evil", auto_map={"AutoConfig": "evil/repository--m.EvilConfig"})


def tokenizer_code(model: Path, canary: Path) -> None:
    (model / "tokenization_evil.py").write_text(_EVIL.format(canary=str(canary)))
    _edit(
        model / "tokenizer_config.json",
        tokenizer_class="EvilTokenizer",
        auto_map={"AutoTokenizer": [None, "tokenization_evil.EvilTokenizer"]},
    )


def tokenizer_class(model: Path, canary: Path) -> None:
    _edit(model / "tokenizer_config.json", tokenizer_class="subprocess.Popen")


def other_tokenizer_class(model: Path, canary: Path) -> None:
    _edit(model / "tokenizer_config.json", tokenizer_class="BertTokenizer")


def tokenizer_arguments(model: Path, canary: Path) -> None:
    _edit(model / "tokenizer_config.json", init_inputs=["x"], vocab_file="/etc/passwd")


def explicit_weights(model: Path, canary: Path) -> None:
    torch.save({"x": Payload(canary)}, model / "adapter_model.bin")
    _edit(model / "config.json", transformers_weights="adapter_model.bin")


def adapter(model: Path, canary: Path) -> None:
    torch.save({"x": Payload(canary)}, model / "adapter_model.bin")
    (model / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "/etc"}))


def distributed_checkpoint(model: Path, canary: Path) -> None:
    (model / ".metadata").write_bytes(pickle.dumps(Payload(canary)))
    (model / WEIGHTS).rename(model / "shard-00001-model-00001-of-00001.safetensors")


def index_of_a_pickle(model: Path, canary: Path) -> None:
    (model / WEIGHTS).unlink()
    (model / "weights.bin").write_bytes(pickle.dumps(Payload(canary)))
    (model / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": {"model.norm.weight": "weights.bin"}})
    )


def index_that_leads_out(model: Path, canary: Path) -> None:
    (model / WEIGHTS).rename(model.parent / WEIGHTS)
    files = dict.fromkeys(load_file(model.parent / WEIGHTS), f"../{WEIGHTS}")
    (model / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))


def quantizer(model: Path, canary: Path) -> None:
    _edit(model / "config.json", quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})


def hub_kernel(model: Path, canary: Path) -> None:
    _edit(model / "config.json", attn_implementation="evil/kernel")


def generation_settings(model: Path, canary: Path) -> None:
    _edit(model / "generation_config.json", num_beams=10**9)


def custom_generation(model: Path, canary: Path) -> None:
    (model / "custom_generate").mkdir()
    (model / "custom_generate" / "generate.py").write_text(_EVIL.format(canary=str(canary)))


def header_length(model: Path, canary: Path) -> None:
    data = (model / WEIGHTS).read_bytes()
    (model / WEIGHTS).write_bytes((2**60).to_bytes(8, "little") + data[8:])


def _header(model: Path, change: dict[str, Any]) -> None:
    data = (model / WEIGHTS).read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["model.norm.weight"] |= change
    written = json.dumps(header).encode()
    (model / WEIGHTS).write_bytes(len(written).to_bytes(8, "little") + written + data[8 + length :])


def overlapping_offsets(model: Path, canary: Path) -> None:
    _header(model, {"data_offsets": [0, 128]})


def offsets_out_of_range(model: Path, canary: Path) -> None:
    _header(model, {"data_offsets": [2**40, 2**40 + 128]})


def wrong_shape(model: Path, canary: Path) -> None:
    _header(model, {"shape": [10**9]})


def wrong_dtype(model: Path, canary: Path) -> None:
    _header(model, {"dtype": "F64"})


def other_shape(model: Path, canary: Path) -> None:
    tensors = load_file(model / WEIGHTS)
    save_file(tensors | {"model.norm.weight": torch.ones(7)}, model / WEIGHTS, {"format": "pt"})


def absurd_width(model: Path, canary: Path) -> None:
    _edit(model / "config.json", hidden_size=10**9, intermediate_size=10**9)


def absurd_depth(model: Path, canary: Path) -> None:
    _edit(model / "config.json", num_hidden_layers=10**9)


def more_layers(model: Path, canary: Path) -> None:
    _edit(model / "config.json", num_hidden_layers=900)


def absurd_vocabulary(model: Path, canary: Path) -> None:
    _edit(model / "config.json", vocab_size=10**12)


def no_heads(model: Path, canary: Path) -> None:
    _edit(model / "config.json", num_attention_heads=0)


def deep_config(model: Path, canary: Path) -> None:
    (model / "config.json").write_text('{"model_type": ' + '{"a": ' * 100_000)


def long_config(model: Path, canary: Path) -> None:
    with (model / "config.json").open("ab") as file:
        file.truncate(2**33)


def many_tokens(model: Path, canary: Path) -> None:
    """Ten million tokens, in 190 MB."""
    content = json.loads((model / "tokenizer.json").read_text())
    names = ",".join(f'"{number:08x}":{number}' for number in range(10_000_000))
    content["model"]["vocab"] = "VOCABULARY"
    (model / "tokenizer.json").write_text(json.dumps(content).replace('"VOCABULARY"', "{" + names + "}"))


def slow_tokenizer(model: Path, canary: Path) -> None:
    """Its regular expression takes exponential time."""
    _edit(
        model / "tokenizer.json",
        pre_tokenizer={"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False},
    )


def more_templates(model: Path, canary: Path) -> None:
    (model / "additional_chat_templates" / "default.jinja").write_text("{{ 1 }}")


# Each with a part of the message that refuses it.
HOSTILE = {
    pickle_beside: "pytorch_model.bin is no part of a plain model folder",
    pickle_instead: "pytorch_model.bin is no part of a plain model folder",
    training_arguments: "training_args.bin is no part",
    stray_pickle: "model.pt is no part",
    model_code: "modeling_evil.py is no part",
    model_code_of_an_unknown_kind: "modeling_evil.py is no part",
    code_map_alone: "config.json: auto_map is refused",
    tokenizer_code: "tokenization_evil.py is no part",
    tokenizer_class: "tokenizer_config.json: tokenizer_class must be",
    other_tokenizer_class: "tokenizer_config.json: tokenizer_class must be",
    tokenizer_arguments: "tokenizer_config.json: init_inputs, vocab_file is refused",
    explicit_weights: "adapter_model.bin is no part",
    adapter: "adapter_config.json is no part",
    distributed_checkpoint: ".metadata is no part",
    index_of_a_pickle: "weights.bin is no part",
    index_that_leads_out: "model.safetensors.index.json: there is no weight file '../model.safetensors'",
    quantizer: "config.json: quantization_config is refused",
    hub_kernel: "config.json: attn_implementation is refused",
    generation_settings: "generation_config.json: num_beams is refused",
    custom_generation: "custom_generate is no part",
    header_length: "model.safetensors is damaged",
    overlapping_offsets: "model.safetensors is damaged",
    offsets_out_of_range: "model.safetensors is damaged",
    wrong_shape: "model.safetensors is damaged",
    wrong_dtype: "model.safetensors is damaged",
    other_shape: "transformers cannot load",
    absurd_width: "transformers cannot load",
    absurd_depth: "config.json: num_hidden_layers is 1,000,000,000, and the weights are",
    more_layers: "missing keys",
    absurd_vocabulary: "transformers cannot load",
    no_heads: "transformers cannot load",
    deep_config: "config.json is not JSON",
    long_config: "config.json is larger than 16 MB",
    many_tokens: "tokenizer.json is not a tokenizer of Gatehouse (it is larger than 64 MB)",
    slow_tokenizer: "tokenizer.json is not a tokenizer of Gatehouse (it cuts words by another rule",
    more_templates: "default.jinja is no part of a tokenizer",
}
TEMPLATES = {
    "an endless loop": "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}"
    "{% endfor %}{% endfor %}{% endfor %}",
    "a huge range": "{{ range(10**12)|list }}",
    "a huge string": "{{ 'a' * 10**11 }}",
    "an escape": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "an import": "{{ cycler.__init__.__globals__.os.popen('touch canary.txt').read() }}",
}
