"""The asset `evaluation_sets`."""

from pipeline.assets.stage import StageAsset

EVALUATION_SETS = StageAsset(
    name="evaluation_sets",
    kinds=frozenset({"parquet"}),
    owner="team:gatehouse",
    description="""\
What every model is measured on: held-out text, four-way questions, preference pairs, prompts to refuse and look-alikes
to answer. Training documents that contain its items are listed in `exclusions.parquet` and left out of training.
""",
)
