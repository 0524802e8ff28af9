"""The asset `lora_model`."""

from pipeline.assets.stage import StageAsset

LORA_MODEL = StageAsset(
    name="lora_model",
    kinds=frozenset({"deepspeed", "peft", "huggingface"}),
    owner="team:gatehouse",
    description="""\
A LoRA adapter on the DPO model for one domain. The artifact holds the adapter and, merged, a plain transformers folder
that `AutoModelForCausalLM.from_pretrained` loads.
""",
)
