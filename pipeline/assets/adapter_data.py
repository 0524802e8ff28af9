"""The asset `adapter_data`."""

from pipeline.assets.stage import StageAsset

ADAPTER_DATA = StageAsset(
    name="adapter_data",
    kinds=frozenset({"parquet"}),
    owner="team:gatehouse",
    description="""\
Documents and conversations of the one domain that the adapter learns.
""",
)
