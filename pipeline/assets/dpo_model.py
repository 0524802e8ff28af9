"""The asset `dpo_model`."""

from pipeline.assets.stage import StageAsset

DPO_MODEL = StageAsset(
    name="dpo_model",
    kinds=frozenset({"deepspeed", "trl", "huggingface"}),
    owner="team:gatehouse",
    description="""\
The SFT model optimized on preference pairs (DPO). The reference log-probabilities are computed once and kept in the
artifact.
""",
)
