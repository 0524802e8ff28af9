"""The asset `instruction_data`."""

from pipeline.assets.stage import StageAsset

INSTRUCTION_DATA = StageAsset(
    name="instruction_data",
    kinds=frozenset({"parquet"}),
    owner="team:gatehouse",
    description="""\
Conversations to fine-tune on: questions about functions with their docstrings (or passages with their continuations),
and written prompts with refusals or answers.
""",
)
