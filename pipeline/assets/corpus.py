"""The asset `corpus`."""

from pipeline.assets.stage import StageAsset

CORPUS = StageAsset(
    name="corpus",
    kinds=frozenset({"daft", "parquet"}),
    owner="team:gatehouse",
    description="""\
The text that may be trained on, and the text that never will be. Cleaned, exact and near duplicates (MinHash) removed,
split into training and held-out documents by the digest of their text. The data card counts what was dropped and shows
examples.
""",
)
