"""`make bench-data`: Gatehouse's data path beside the libraries that do the same, each in a process of its own.

The whole process is measured: wall time, and the greatest sum of the memory of its process tree (proportional set
size). Every ratio is of two figures of the same run, on the same texts, with the same tokenizer.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.data.corpus import write_corpus
from benchmarks.data.recall import recall_and_precision
from pipeline.paths import ROOT
from training.data.tokens.byte_bpe import pre_tokenizer, train_bpe

RESULTS = ROOT / "benchmarks" / "results"
_PEERS = ("datatrove==0.10.1", "rensa==0.5.0", "datasketch==2.0.0", "tiktoken==0.14.0", "spacy", "orjson", "nltk")
_VOCABULARY = 32_768
_FILE_MEGABYTES = 64
_SETS = {
    "JSONL to packed shards": ("shards", ("datasets_trl", "datatrove", "tiktoken_numpy")),
    "near-duplicates": ("near-duplicates", ("datatrove_minhash", "rensa", "datasketch")),
    "tokens on disk": ("tokens", ("gigatoken_memory", "hf_numpy", "tiktoken_numpy")),
    "packing plan": ("plan", ("trl_plan",)),
}


@dataclass
class Measured:
    """One contender's run.

    Attributes:
        seconds: Of the whole process, or what it says it took itself.
        megabytes_per_second: Of text; for a plan, millions of tokens.
        peak_megabytes: Greatest memory of the process and its children together.
        said: What it printed of its result.
    """

    step: str
    name: str
    seconds: float
    megabytes_per_second: float
    peak_megabytes: float
    said: dict[str, Any]


def main() -> None:
    """Measure, print and keep the tables."""
    arguments = _arguments()
    scratch = Path(tempfile.mkdtemp(prefix="bench-data-", dir=arguments.scratch))
    try:
        peers = _install(arguments.peers)
        corpus = scratch / "corpus.jsonl"
        size = write_corpus(corpus, arguments.megabytes, arguments.corpus)
        tokenizer = _tokenizer(corpus, scratch)
        measured = _measure_all(arguments, corpus, size / 1e6, tokenizer, peers, scratch)
        growth = _growth(arguments, tokenizer, peers, scratch) if arguments.growth else []
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    _show(measured, size / 1e6)
    name = arguments.name or f"data-{arguments.megabytes:g}mb"
    _keep(name, measured, growth, size / 1e6)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.data", description=__doc__)
    parser.add_argument("--corpus", type=Path, help="a .jsonl with the key text, or a folder of .py files")
    parser.add_argument("--megabytes", type=float, default=100, help="text to measure (default: 100)")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="of each contender")
    parser.add_argument("--peers", type=Path, default=ROOT / ".gatehouse" / "peers", help="where peers are installed")
    parser.add_argument("--scratch", type=Path, help="folder for what is measured (default: the system's)")
    parser.add_argument("--only", nargs="*", choices=_SETS, help="some of the steps")
    parser.add_argument("--growth", type=float, nargs="*", help="megabytes of further runs of the whole way")
    parser.add_argument("--name", help="of the result files")
    return parser.parse_args()


def _install(folder: Path) -> Path:
    if not (folder / ".installed").exists():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target", folder]
        subprocess.run([*command, "--constraint", ROOT / "constraints.txt", *_PEERS], check=True)
        # Later ones refuse texts that are not bytes, which is what datatrove gives them.
        subprocess.run([*command, "--no-deps", "--upgrade", "xxhash==3.5.0"], check=True)
        (folder / ".installed").touch()
    return folder


def _tokenizer(corpus: Path, scratch: Path) -> Path:
    path = scratch / "tokenizer.json"
    with corpus.open(encoding="utf-8") as file:
        texts = (json.loads(line)["text"] for line, _ in zip(file, range(2_000), strict=False))
        train_bpe(texts, _VOCABULARY, 2, pre_tokenizer("gpt4o")).save(str(path))
    return path


def _measure_all(
    arguments: argparse.Namespace, corpus: Path, megabytes: float, tokenizer: Path, peers: Path, scratch: Path
) -> list[Measured]:
    measured = []
    lengths = scratch / "lengths.npy"
    draw = np.random.default_rng(0)
    np.save(lengths, np.minimum(draw.lognormal(6.2, 1.1, 200_000).astype(np.int64) + 1, 100_000))
    for step in arguments.only or _SETS:
        own, others = _SETS[step]
        given, amount = (lengths, float(np.load(lengths).sum()) / 1e6) if own == "plan" else (corpus, megabytes)
        for name in ("gatehouse", *others):
            module = ["benchmarks.data.ours", own] if name == "gatehouse" else ["benchmarks.data.peers", name]
            run = _run(step, name, module, given, amount, tokenizer, arguments.processes, peers, scratch)
            if own == "near-duplicates":
                kept = json.loads((scratch / "work" / "kept.json").read_text())
                run.said |= recall_and_precision(corpus, set(kept))
            measured.append(run)
            Console().print(f"{step}: {name}: {run.megabytes_per_second:.2f}, {run.said}", highlight=False)
    return measured


def _growth(arguments: argparse.Namespace, tokenizer: Path, peers: Path, scratch: Path) -> list[Measured]:
    """The whole way for several sizes of corpus."""
    runs = []
    for megabytes in arguments.growth:
        corpus = scratch / "grown"
        shutil.rmtree(corpus, ignore_errors=True)
        corpus.mkdir()
        size = write_corpus(corpus, megabytes, arguments.corpus, _FILE_MEGABYTES)
        module = ["benchmarks.data.ours", "shards"]
        run = _run("growth", "gatehouse", module, corpus, size / 1e6, tokenizer, arguments.processes, peers, scratch)
        Console().print(f"growth: {size / 1e6:.0f} MB in {run.seconds:.1f} s, {run.peak_megabytes:.0f} MB of memory")
        runs.append(run)
    return runs


def _run(
    step: str,
    name: str,
    module: list[str],
    corpus: Path,
    amount: float,
    tokenizer: Path,
    processes: int,
    peers: Path,
    scratch: Path,
) -> Measured:
    work = scratch / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{peers}", "HF_HUB_OFFLINE": "1", "HF_HOME": str(scratch / "hf")}
    command = [sys.executable, "-m", *module, corpus, work, tokenizer, str(processes)]
    started = time.monotonic()
    with (scratch / "said").open("w+") as said, (scratch / "errors").open("w+") as errors:
        process = psutil.Popen(command, cwd=ROOT, env=environment, stdout=said, stderr=errors)
        peak = 0.0
        while process.poll() is None:
            peak = max(peak, _memory(process))
            time.sleep(0.2)
        seconds = time.monotonic() - started
        said.seek(0)
        errors.seek(0)
        if process.returncode:
            raise SystemExit(f"{name} failed:\n{errors.read()[-4000:]}")
        result = json.loads(said.read().splitlines()[-1])
    seconds = result.pop("seconds", seconds)
    return Measured(step, name, seconds, amount / seconds, peak / 1e6, result)


def _memory(process: psutil.Process) -> float:
    """Proportional set size of a process and all below it, in bytes."""
    total = 0.0
    try:
        for one in (process, *process.children(recursive=True)):
            total += one.memory_full_info().pss
    except psutil.Error:
        return 0.0
    return total


def _show(measured: list[Measured], megabytes: float) -> None:
    table = Table("step", "by", "s", "MB/s", "Gatehouse is", "peak MB", title=f"{megabytes:.0f} MB of text")
    for run in measured:
        table.add_row(*_row(run, measured))
    Console().print(table)


def _row(run: Measured, measured: list[Measured]) -> list[str]:
    own = next(other for other in measured if other.step == run.step and other.name == "gatehouse")
    ratio = f"{run.seconds / own.seconds:.1f} times as fast" if run is not own else ""
    speed = f"{run.megabytes_per_second:.2f}"
    return [run.step, run.name, f"{run.seconds:.1f}", speed, ratio, f"{run.peak_megabytes:.0f}"]


def _keep(name: str, measured: list[Measured], growth: list[Measured], megabytes: float) -> None:
    from matplotlib.figure import Figure

    RESULTS.mkdir(exist_ok=True)
    machine = f"{os.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.0f} GB, {platform.machine()}"
    content = {"machine": machine, "megabytes": megabytes, "runs": [asdict(run) for run in (*measured, *growth)]}
    (RESULTS / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")

    lines = [f"`python -m benchmarks.data` on {machine}; {megabytes:.0f} MB of text.", ""]
    lines += ["| step | by | s | MB/s | Gatehouse is | peak MB | result |", "|---|---|--:|--:|---|--:|---|"]
    for run in measured:
        said = ", ".join(
            f"{key} {value:,}" if isinstance(value, int | float) else f"{key} {value}"
            for key, value in run.said.items()
        )
        lines.append(f"| {' | '.join(_row(run, measured))} | {said} |")
    if growth:
        sizes, seconds = (np.log([getattr(run, field) for run in growth]) for field in ("seconds", "seconds"))
        amounts = np.log([run.megabytes_per_second * run.seconds for run in growth])
        exponent = float(np.polyfit(amounts, seconds, 1)[0]) if len(sizes) > 1 else float("nan")
        lines += ["", "| MB of text | s | MB/s | peak MB | tokens |", "|--:|--:|--:|--:|--:|"]
        lines += [
            f"| {run.megabytes_per_second * run.seconds:.0f} | {run.seconds:.1f} | {run.megabytes_per_second:.1f} | "
            f"{run.peak_megabytes:.0f} | {run.said['tokens']:,.0f} |"
            for run in growth
        ]
        lines += ["", f"Time grows with the size to the power of {exponent:.2f}."]
    lines += ["", f"![Speed of each step]({name}.png)"]
    (RESULTS / f"{name}.md").write_text("\n".join(lines) + "\n")

    figure = Figure(figsize=(9, 0.34 * len(measured) + 1), layout="constrained")
    axes = figure.subplots()
    names = [f"{run.step}: {run.name}" for run in measured][::-1]
    colours = ["#4477aa" if run.name == "gatehouse" else "#bbbbbb" for run in measured][::-1]
    axes.barh(names, [run.megabytes_per_second for run in measured][::-1], color=colours)
    axes.set(xscale="log", xlabel="MB of text a second (millions of tokens for a plan)")
    figure.savefig(RESULTS / f"{name}.png", dpi=80)


if __name__ == "__main__":
    main()
