"""The asset `sft_model`."""

from pipeline.assets.stage import StageAsset

SFT_MODEL = StageAsset(
    name="sft_model",
    kinds=frozenset({"deepspeed", "trl", "huggingface"}),
    owner="team:gatehouse",
    description="""\
The base model fine-tuned on conversations. The loss covers the assistant's tokens only.
""",
)
