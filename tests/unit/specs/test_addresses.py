"""Which addresses a recipe may hold, and that none of its secrets is shown."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from pipeline.recipes.document import Tree
from pipeline.recipes.errors import mistakes
from training.specs.addresses import shown_address
from training.specs.raw_corpus import Source

SECRET = "canary41c7"


@pytest.mark.parametrize(
    "path",
    [
        "https://host/texts/a.jsonl.gz",
        "http://host:8080/a.txt?download=true",
        "https://${USER}:${PASSWORD}@host/a.txt",
        "https://someone:$PASSWORD@host/a.txt",
        "https://host/a.txt?X-Amz-Signature=${SIGNATURE}&$REST",
        "s3://bucket/folder/**/*.jsonl",
        "s3://${BUCKET}/a.txt",
        ("https://host/a.txt", "s3://bucket/b.txt"),
    ],
)
def test_an_address_is_kept_as_it_is_written(path: str | tuple[str, ...]) -> None:
    source = Source(name="s", path=path)
    assert source.addresses == (path if isinstance(path, tuple) else (path,))
    assert Source.model_validate(source.model_dump(mode="json")) == source


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (
            f"https://someone:{SECRET}@host/a.txt",
            "holds a user's name or password; put it into an environment variable",
        ),
        (f"https://{SECRET}@host/a.txt", "holds a user's name or password"),
        (f"https://host/a.txt?X-Amz-Signature={SECRET}", "holds a secret, X-Amz-Signature; put it into an environment"),
        (f"https://host/a.txt?page=1&token={SECRET}", "holds a secret, token"),
        (f"https://host/a.txt?sig=${{A}}{SECRET}", "holds a secret, sig"),
        ("https://host/texts/", "names no file; give the address of each file"),
        ("https://host", "names no file"),
        ("https://host/*.txt", "a web server lists no files"),
        ("s3:///texts", "names no bucket"),
        ("gs://bucket/texts", "gs:// cannot be read; give an address of http, https or s3"),
        (("https://host/a.txt", "texts"), "a list holds addresses only"),
        ((), "a list is not text; put it in quotes"),
        (5, "5 is not text; put it in quotes"),
    ],
)
def test_a_recipe_is_refused_without_its_secret(path: object, message: str) -> None:
    document = Tree({"name": Tree("s", "a", 1), "path": Tree(path, "a", 2)}, "a", 1)
    (where, told), *_ = mistakes(Source, document)
    assert where == ("path",) and message in told and SECRET not in told and len(told) < 300


def test_a_path_of_this_machine_has_the_identity_that_it_had() -> None:
    assert json.loads(Source(name="s", path="texts").model_dump_json())["path"] == "texts"
    with pytest.raises(ValidationError):
        Source(name="s", path="https://host/")


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("https://a:b@host:8080/a%20b.txt?sig=c#d", "https://host:8080/a%20b.txt"),
        ("s3://bucket/a?b.txt", "s3://bucket/a?b.txt"),
    ],
)
def test_an_address_is_shown_without_its_secrets(address: str, shown: str) -> None:
    assert shown_address(address) == shown
