"""What the docs name is there: files, folders, pages and their headings."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
ROOMS = "pipeline|training|kernels|lmkernels|tests|docs|benchmarks|assets_config|docker|postgresql"
NAMED_PATH = re.compile(rf"`((?:{ROOMS})/[\w./-]*)`")
NAMED_FILE = re.compile(r"`(?:[\w-]+/)*([\w-]+\.(?:py|toml|sh))`")
LINK = re.compile(r"\]\(([^)\s]+)\)")


def prose(page: Path) -> str:
    return re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The headings of a page as its links name them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), flags=re.MULTILINE)
    plain = (re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", re.sub(r"[`*]", "", heading)).strip() for heading in headings)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    dead = []
    for link in LINK.findall(prose(page)):
        if link.startswith(("http", "mailto:")):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            dead.append(link)
    assert dead == []


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=lambda page: str(page.relative_to(ROOT))
)
def test_files_that_are_named_exist(page: Path) -> None:
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    names = {Path(file).name for file in listed.stdout.split()}
    if not names:
        pytest.skip("this is no git checkout")
    text = prose(page)
    missing = [
        path
        for path in NAMED_PATH.findall(text)
        if not (ROOT / path).exists() and not (ROOT / "kernels" / path).exists()
    ]
    assert missing + [name for name in NAMED_FILE.findall(text) if name not in names] == []
