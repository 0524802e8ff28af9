"""The asset `preference_data`."""

from pipeline.assets.stage import StageAsset

PREFERENCE_DATA = StageAsset(
    name="preference_data",
    kinds=frozenset({"parquet"}),
    owner="team:gatehouse",
    description="""\
Pairs of a right and a wrong answer to one prompt, made from the conversations.
""",
)
