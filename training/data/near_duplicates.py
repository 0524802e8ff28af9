"""Near-duplicate removal by MinHash (Broder 1997) and banding (Leskovec et al., Mining of Massive Datasets, 3.4)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from training.data.quiet_daft import F, daft
from training.specs.corpus import MinHash

Signatures = npt.NDArray[np.uint32]
_SEED = 1
col = daft.col


def near_duplicates(documents: daft.DataFrame, spec: MinHash) -> dict[str, str]:
    """The documents to remove so that no two near-duplicates remain.

    Two documents are near-duplicates if they share a band and their signatures agree in at least `spec.threshold` of
    the permutations. In the order of ids, a document is removed if it is a near-duplicate of one that was kept, so the
    result does not depend on the order of rows. Daft finds the documents that share a band with another one; only their
    signatures are gathered here.

    Args:
        documents: Columns `id` (unique) and `text`.
        spec: Permutations, bands, words per shingle and threshold.

    Returns:
        Removed id to the kept id it resembles most.
    """
    signatures = documents.select("id", _signature(spec)).collect()
    rows = spec.permutations // spec.bands
    bands = [F.hash(F.slice(col("signature"), band * rows, (band + 1) * rows), seed=band) for band in range(spec.bands)]
    keyed = signatures.select("id", F.to_list(*bands).alias("band")).explode("band")
    shared = keyed.groupby("band").agg(F.count(col("id")).alias("members")).where(col("members") > 1)
    crowded = keyed.join(shared.select("band"), on="band", how="semi").select("id").distinct()
    table = signatures.join(crowded, on="id", how="semi").sort("id").to_arrow()
    ids = table.column("id").to_pylist()
    if not ids:
        return {}
    values = np.asarray(table.column("signature").to_pylist(), dtype=np.uint32)
    return _keep_first(ids, values, spec)


def _signature(spec: MinHash) -> daft.Expression:
    """MinHash of the lower-case words; punctuation does not count."""
    words = F.strip(F.regexp_replace(F.lower(col("text")), r"[^\p{L}\p{N}]+", " "))
    signature = F.minhash(words, num_hashes=spec.permutations, ngram_size=spec.ngram, seed=_SEED)
    return signature.cast(daft.DataType.list(daft.DataType.uint32())).alias("signature")


def _keep_first(ids: list[str], signatures: Signatures, spec: MinHash) -> dict[str, str]:
    """Greedy choice in the order of ids.

    Only kept documents enter the bands, so these stay small however many copies of one text there are.
    """
    rows = spec.permutations // spec.bands
    kept: dict[tuple[int, bytes], list[int]] = {}
    removed: dict[str, str] = {}
    for index, signature in enumerate(signatures):
        keys = [(band, signature[band * rows:(band + 1) * rows].tobytes()) for band in range(spec.bands)]
        near = sorted({other for key in keys for other in kept.get(key, ())})
        if near:
            similarity = (signatures[near] == signature).mean(axis=1)
            best = int(similarity.argmax())
            if similarity[best] >= spec.threshold:
                removed[ids[index]] = ids[near[best]]
                continue
        for key in keys:
            kept.setdefault(key, []).append(index)
    return removed
