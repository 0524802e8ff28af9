"""The asset `raw_corpus`."""

from pipeline.assets.stage import StageAsset

RAW_CORPUS = StageAsset(
    name="raw_corpus",
    kinds=frozenset({"parquet"}),
    owner="team:gatehouse",
    description="""\
The recipe's sources, gathered into parquet shards with provenance: source, path, licence and digest of every document.
Nothing is changed or judged here yet. A file that cannot be read stops the job with its name and row.
""",
)
