"""The same steps by other libraries: `python -m benchmarks.data.peers NAME CORPUS FOLDER TOKENIZER PROCESSES`.

They are installed in a folder of their own and used as their documentation shows. None of them does all that Gatehouse
does in the step: what each leaves out stands in its docstring.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.data.ours import CONTEXT

_THRESHOLD, _NGRAM, _PERMUTATIONS = 0.8, 5, 128
_WORD = re.compile(r"\w+")


def datasets_trl(corpus: Path, folder: Path, tokenizer: Path, processes: int) -> dict[str, Any]:
    """`datasets` maps `tokenizers` over the rows and TRL packs them; nothing is cleaned, no duplicate removed."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    import datasets
    from tokenizers import Tokenizer
    from trl import pack_dataset

    encoder = Tokenizer.from_file(str(tokenizer))

    def encode(rows: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        return {"input_ids": [encoding.ids for encoding in encoder.encode_batch_fast(rows["text"])]}

    rows = datasets.load_dataset("json", data_files=str(corpus), split="train", cache_dir=str(folder / "cache"))
    tokenized = rows.map(encode, batched=True, remove_columns=rows.column_names, num_proc=processes)
    packed = pack_dataset(tokenized, CONTEXT, "bfd_split", {"num_proc": processes})
    packed.save_to_disk(str(folder / "packed"), num_proc=processes)
    return {"documents": len(rows), "rows": len(packed)}


def datatrove(corpus: Path, folder: Path, tokenizer: Path, processes: int) -> dict[str, Any]:
    """datatrove's MinHash in four stages, then tokens on disk; no filter of quality, nothing is packed."""
    documents = datatrove_minhash(corpus, folder, tokenizer, processes)["documents"]
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.tokens import DocumentTokenizer

    LocalPipelineExecutor(
        [
            JsonlReader(str(folder / "kept")),
            DocumentTokenizer(
                str(folder / "tokens"), str(tokenizer), eos_token="<|endoftext|>", shuffle_documents=False
            ),
        ],
        tasks=processes,
        workers=processes,
        logging_dir=str(folder / "logs" / "tokens"),
    ).run()
    return {"documents": documents}


def datatrove_minhash(corpus: Path, folder: Path, tokenizer: Path, processes: int) -> dict[str, Any]:
    """datatrove's near-duplicates: connected documents count as one, whatever their similarity."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.dedup import MinhashDedupCluster, MinhashDedupFilter, MinhashDedupSignature
    from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupBuckets
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter

    _split(corpus, folder / "in", processes)
    config, read = MinhashConfig(n_grams=_NGRAM), JsonlReader(str(folder / "in"))

    def run(name: str, steps: list[Any], tasks: int) -> None:
        logs = str(folder / "logs" / name)
        LocalPipelineExecutor(steps, tasks=tasks, workers=processes, logging_dir=logs).run()

    signatures, buckets, removed = (str(folder / name) for name in ("signatures", "buckets", "removed"))
    run("signatures", [read, MinhashDedupSignature(signatures, config)], processes)
    run("buckets", [MinhashDedupBuckets(signatures, buckets, config=config)], config.num_buckets)
    run("cluster", [MinhashDedupCluster(buckets, removed, config=config)], 1)
    write = JsonlWriter(str(folder / "kept"), "${rank}.jsonl", compression=None)
    run("filter", [read, MinhashDedupFilter(removed), write], processes)
    kept = [json.loads(line)["id"] for path in (folder / "kept").iterdir() for line in path.open()]
    _write_kept(folder, kept)
    return {"documents": len(kept)}


def tiktoken_numpy(corpus: Path, folder: Path, tokenizer: Path, processes: int) -> dict[str, Any]:
    """tiktoken with the same merges, tokens to one file of numpy; nothing is cleaned, removed or packed."""
    import tiktoken

    content = json.loads(tokenizer.read_text())
    ranks = _ranks(content)
    encoder = tiktoken.Encoding("same", pat_str=_pattern(content), mergeable_ranks=ranks, special_tokens={})
    documents = 0
    with (folder / "tokens.bin").open("wb") as file:
        for texts in _batches(corpus):
            for ids in encoder.encode_ordinary_batch(texts, num_threads=processes):
                file.write(np.array(ids, np.uint16).tobytes())
            documents += len(texts)
    return {"documents": documents}


def hf_numpy(corpus: Path, folder: Path, tokenizer: Path, processes: int) -> dict[str, Any]:
    """`tokenizers` on all cores, tokens to one file of numpy."""
    from tokenizers import Tokenizer

    encoder = Tokenizer.from_file(str(tokenizer))
    documents = 0
    with (folder / "tokens.bin").open("wb") as file:
        for texts in _batches(corpus):
            for encoding in encoder.encode_batch_fast(texts, add_special_tokens=False):
                file.write(np.array(encoding.ids, np.uint16).tobytes())
            documents += len(texts)
    return {"documents": documents}


def gigatoken_memory(corpus: Path, folder: Path, tokenizer: Path, processes: int) -> dict[str, Any]:
    """gigatoken from the file to an array in memory; nothing is written."""
    import gigatoken

    rows = gigatoken.Tokenizer(str(tokenizer)).encode_files(gigatoken.JsonlFileSource([corpus]))
    return {"documents": len(rows)}


def rensa(corpus: Path, folder: Path, tokenizer: Path, processes: int) -> dict[str, Any]:
    """rensa's own way to keep unique documents; shingles are made in Python, as it takes tokens."""
    from rensa import RMinHashDeduplicator

    keeper = RMinHashDeduplicator(threshold=_THRESHOLD, num_perm=_PERMUTATIONS, use_lsh=True)
    kept: list[str] = []
    for rows in _row_batches(corpus):
        flags = keeper.add_pairs([(row["id"], _shingles(row["text"])) for row in rows])
        kept += [row["id"] for row, is_new in zip(rows, flags, strict=True) if is_new]
    _write_kept(folder, kept)
    return {"documents": len(kept)}


def datasketch(corpus: Path, folder: Path, tokenizer: Path, processes: int) -> dict[str, Any]:
    """datasketch's MinHash and LSH in memory, one document after the other."""
    from datasketch import MinHash, MinHashLSH

    index, kept = MinHashLSH(threshold=_THRESHOLD, num_perm=_PERMUTATIONS), list[str]()
    for rows in _row_batches(corpus):
        for row in rows:
            sketch = MinHash(num_perm=_PERMUTATIONS)
            sketch.update_batch([shingle.encode() for shingle in set(_shingles(row["text"]))])
            if not index.query(sketch):
                index.insert(row["id"], sketch)
                kept.append(row["id"])
    _write_kept(folder, kept)
    return {"documents": len(kept)}


def trl_plan(lengths: Path, folder: Path, tokenizer: Path, processes: int) -> dict[str, Any]:
    """TRL's best fit, which also moves the tokens; without the start of the process."""
    import datasets
    import pyarrow as pa
    from trl import pack_dataset

    sizes = np.load(lengths)
    values = pa.array(np.zeros(int(sizes.sum()), np.uint16))
    column = pa.LargeListArray.from_arrays(np.concatenate([[0], np.cumsum(sizes)]), values)
    rows = datasets.Dataset(pa.table({"input_ids": column}))
    started = time.perf_counter()
    packed = pack_dataset(rows, CONTEXT, "bfd_split")
    return {"rows": len(packed), "seconds": time.perf_counter() - started}


def _shingles(text: str) -> list[str]:
    words = _WORD.findall(text.lower())
    return [" ".join(words[at : at + _NGRAM]) for at in range(max(1, len(words) - _NGRAM + 1))]


def _row_batches(corpus: Path) -> Iterator[list[dict[str, str]]]:
    batch: list[dict[str, str]] = []
    with corpus.open(encoding="utf-8") as file:
        for line in file:
            batch.append(json.loads(line))
            if len(batch) == 1000:
                yield batch
                batch = []
    if batch:
        yield batch


def _batches(corpus: Path) -> Iterator[list[str]]:
    for rows in _row_batches(corpus):
        yield [row["text"] for row in rows]


def _split(corpus: Path, folder: Path, count: int) -> None:
    """Several files, because datatrove works on one with one process."""
    folder.mkdir()
    files = [(folder / f"{number}.jsonl").open("w") for number in range(count)]
    with corpus.open() as lines:
        for number, line in enumerate(lines):
            files[number % count].write(line)
    for file in files:
        file.close()


def _write_kept(folder: Path, ids: Iterable[str]) -> None:
    (folder / "kept.json").write_text(json.dumps(sorted(map(int, ids))))


def _ranks(content: dict[str, Any]) -> dict[bytes, int]:
    """The merges of a byte-level BPE as tiktoken wants them: bytes of each token to its rank."""
    from tokenizers import pre_tokenizers

    alphabet = {chr(code): bytes([code]) for code in (*range(33, 127), *range(161, 173), *range(174, 256))}
    others = [code for code in range(256) if bytes([code]) not in alphabet.values()]
    alphabet |= {chr(256 + place): bytes([code]) for place, code in enumerate(others)}
    assert set(alphabet) == set(pre_tokenizers.ByteLevel.alphabet())
    added = {token["content"] for token in content["added_tokens"]}
    tokens = sorted((rank, token) for token, rank in content["model"]["vocab"].items() if token not in added)
    return {b"".join(alphabet[character] for character in token): place for place, (_, token) in enumerate(tokens)}


def _pattern(content: dict[str, Any]) -> str:
    from training.data.tokens.byte_bpe import PATTERNS

    split = content["pre_tokenizer"].get("pretokenizers")
    return str(split[0]["pattern"]["Regex"]) if split else PATTERNS["gpt2"]


PEERS = (
    datasets_trl,
    datatrove,
    datatrove_minhash,
    tiktoken_numpy,
    hf_numpy,
    gigatoken_memory,
    rensa,
    datasketch,
    trl_plan,
)

if __name__ == "__main__":
    by_name = {peer.__name__: peer for peer in PEERS}
    print(json.dumps(by_name[sys.argv[1]](*map(Path, sys.argv[2:5]), int(sys.argv[5]))))
