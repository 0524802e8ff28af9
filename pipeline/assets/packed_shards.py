"""The asset `packed_shards`."""

from pipeline.assets.stage import StageAsset

PACKED_SHARDS = StageAsset(
    name="packed_shards",
    kinds=frozenset({"numpy"}),
    owner="team:gatehouse",
    description="""\
The training text as token shards with a document index, memory-mapped. One set of shards serves every context length:
rows are packed best-fit when they are read, no token is lost, and no attention crosses documents.
""",
)
