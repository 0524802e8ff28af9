from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.data.tokens import parts
from training.job.context import InputArtifact


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> InputArtifact:
    return parts.corpus_artifact(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory, corpus: InputArtifact) -> Path:
    return parts.tokenizer_artifact(tmp_path_factory.mktemp("tokenizer") / "out", corpus).folder
