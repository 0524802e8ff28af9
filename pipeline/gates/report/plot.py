"""A gate's interval drawn against its threshold and the champion, as an SVG that needs nothing around it."""

from __future__ import annotations

from html import escape

from training.specs.gates import Verdict

WIDTH, HEIGHT = 300, 52
_LEFT, _RIGHT, _LINE = 8, WIDTH - 8, 26
# These colours read on white and on black: the picture cannot know what is behind it.
_PASSED, _FAILED, _QUIET = "#2f9e62", "#d64545", "#8a8f98"


def gate_plot(verdict: Verdict) -> str:
    """The picture of a verdict over a sampled metric; empty when there is no value to draw."""
    if verdict.value is None or verdict.method in (None, "exact"):
        return ""

    low, high = _range(verdict)

    def x(value: float) -> float:
        share = (min(max(value, low), high) - low) / (high - low)
        return round(_LEFT + share * (_RIGHT - _LEFT), 1)

    colour = _PASSED if verdict.passed else _FAILED
    threshold, value = x(verdict.threshold), x(verdict.value)
    parts = [
        _zone(verdict, threshold),
        f'<path d="M{_LEFT} {_LINE}H{_RIGHT}" stroke="{_QUIET}" stroke-opacity=".5"/>',
        f'<path d="M{threshold} 13V39" stroke="{_QUIET}" stroke-width="2" stroke-dasharray="3 2"/>',
    ]
    if verdict.interval:
        start, end = x(verdict.interval[0]), x(verdict.interval[1])
        parts.append(f'<path d="M{start} {_LINE}H{end}M{start} 21v10M{end} 21v10" stroke="{colour}" stroke-width="3"/>')
    if verdict.champion:
        champion = x(verdict.champion.value)
        parts.append(f'<path d="M{champion} 19l7 7-7 7-7-7z" fill="none" stroke="{_QUIET}" stroke-width="2"/>')

    # The value is drawn last, above the interval and the champion.
    parts += [
        f'<circle cx="{value}" cy="{_LINE}" r="5" fill="{colour}"/>',
        _label(value, 10, colour, f"{verdict.value:.4g}"),
        _label(threshold, 50, _QUIET, f"{verdict.must_be} {verdict.threshold:,.12g}"),
    ]

    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" '
        f'viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="11" role="img">'
        f"<title>{escape(verdict.reason)}</title>{''.join(parts)}</svg>"
    )


def _range(verdict: Verdict) -> tuple[float, float]:
    """The ends of the scale: of a share 0 and 1, else what has to be seen with some room beside it."""
    if verdict.method == "wilson":
        return 0.0, 1.0

    assert verdict.value is not None
    points = [verdict.value, verdict.threshold, *(verdict.interval or ())]
    if verdict.champion:
        points.append(verdict.champion.value)

    low, high = min(points), max(points)
    room = 0.15 * (high - low) or 0.1 * abs(high) or 1.0
    return low - room, high + room


def _zone(verdict: Verdict, threshold: float) -> str:
    """Where the gate passes."""
    if verdict.must_be == "==":
        return ""
    left, right = (threshold, _RIGHT) if verdict.must_be in (">", ">=") else (_LEFT, threshold)
    return f'<rect x="{left}" y="15" width="{round(right - left, 1)}" height="22" fill="{_PASSED}" fill-opacity=".13"/>'


def _label(x: float, y: int, colour: str, text: str) -> str:
    anchor = "start" if x < 40 else "end" if x > WIDTH - 40 else "middle"
    return f'<text x="{x}" y="{y}" fill="{colour}" text-anchor="{anchor}">{escape(text)}</text>'
