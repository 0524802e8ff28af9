"""A small text of a user's own, a recipe for it, and the commands that the README names."""

import shutil
import subprocess
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from tests import warm
from tests.conftest import BIN, ROOT, environment
from tests.patience import run_command

DATA = "+packed_shards,+instruction_data,+preference_data,+adapter_data"

RECIPE = """\
extends: smoke
name: mine
sources:
  - {{name: notes, path: {path}}}
gates:
  raw_corpus:
    - {{metric: bytes, must_be: ">", threshold: 0}}
  corpus:
    - {{metric: documents, must_be: ">", threshold: 0}}
"""


@dataclass(frozen=True)
class Workspace:
    """A folder with notes, the recipe `mine.yaml` and the home of one user.

    Attributes:
        python: What its commands take for Python when they start a job; see `tests.warm.stand_in`.
    """

    folder: Path
    python: str = ""

    @property
    def notes(self) -> Path:
        return self.folder / "notes"

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def recipe(self) -> Path:
        return self.folder / "mine.yaml"

    def asset(self, name: str) -> Path:
        return self.home / "store" / "mine" / name

    def write_recipe(self, path: Path | str | None = None) -> None:
        self.recipe.write_text(RECIPE.format(path=path or self.notes))

    def command(self, *arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
        """Run a command; one of Gatehouse's that needs no process of its own, in one that has its libraries loaded."""
        command, env = [str(BIN / arguments[0]), *arguments[1:]], environment(self.home, **extra)
        if warm.can_run(arguments, extra):
            return warm.run_command(command, cwd=ROOT, env=env, python=self.python)
        return run_command(command, cwd=ROOT, env=env)

    def run(self, *arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
        return self.command("gatehouse", "run", "-r", str(self.recipe), *arguments, **extra)

    def moved(self, folder: Path, python: str = "") -> "Workspace":
        """A copy in another folder, with the times of change that a source's state is told by."""
        shutil.copytree(self.folder, folder, dirs_exist_ok=True)
        copy = Workspace(folder, python)
        copy.write_recipe()
        return copy


def workspace(folder: Path, python: str = "") -> Workspace:
    """Notes of 1.5 MB: enough for the gates of smoke's tokenizer and evaluation sets."""
    made = Workspace(folder, python)
    made.notes.mkdir(parents=True)
    standard_library = Path(sysconfig.get_paths()["stdlib"])
    for package in ("asyncio", "collections", "email", "http", "json", "logging", "urllib"):
        for file in (standard_library / package).glob("*.py"):
            shutil.copy2(file, made.notes / f"{package}-{file.name}")
    made.write_recipe()
    return made
