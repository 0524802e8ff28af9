"""The asset `base_model`."""

from pipeline.assets.stage import StageAsset

BASE_MODEL = StageAsset(
    name="base_model",
    kinds=frozenset({"deepspeed", "pytorch", "huggingface"}),
    owner="team:gatehouse",
    description="""\
A causal language model built from the recipe's architecture and pretrained on the packed shards, with a context-length
curriculum at a constant number of tokens per step.
""",
)
