"""The asset `tokenizer`."""

from pipeline.assets.stage import StageAsset

TOKENIZER = StageAsset(
    name="tokenizer",
    kinds=frozenset({"huggingface"}),
    owner="team:gatehouse",
    description="""\
A byte-level BPE trained on the corpus, with special tokens and a chat template, frozen. Its digest is part of
everything made with it; a job whose inputs disagree about it stops.
""",
)
