"""The share solved by each attempt, drawn as inline SVG: no script, no network, colours from the page."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from guardlearn.evidence import Evidence
from guardlearn.report.words import percent

__all__ = ["attempts_curve"]

_WIDTH, _HEIGHT = 560, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 120, 16, 40


def attempts_curve(evidence: Evidence) -> str:
    """Return an SVG of the share of specifications solved by attempt 1 .. R_max, base and candidate."""
    sides: list[tuple[str, str, Sequence[float]]] = [("base", "base", evidence.base.solved_by_attempt)]
    if evidence.candidate is not None:
        sides.append(("candidate", "candidate", evidence.candidate.solved_by_attempt))
    drawn = [(name, style, curve) for name, style, curve in sides if curve]
    parts = [_axes(evidence.r_max)]
    heights = _label_heights([_y(curve[-1]) for _, _, curve in drawn])
    for (name, style, curve), height in zip(drawn, heights, strict=True):
        parts.append(_line(name, style, curve, height))
    told = "; ".join(f"{name}: {', '.join(percent(share) for share in curve)}" for name, _, curve in drawn)
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(f"Share solved by attempt. {told}")}">'
        f"{''.join(parts)}</svg>"
    )


def _axes(r_max: int) -> str:
    parts = []
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = _y(share)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{share:.0%}</text>')
    step = max(1, r_max // 12)
    for attempt in range(1, r_max + 1, step):
        x = _x(attempt, r_max)
        parts.append(f'<text x="{x:.1f}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle">{attempt}</text>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f'<text x="{middle:.1f}" y="{_HEIGHT - 4}" text-anchor="middle">attempts allowed</text>')
    return "".join(parts)


def _line(name: str, style: str, curve: Sequence[float], label_height: float) -> str:
    spots = [(_x(attempt, len(curve)), _y(share), share) for attempt, share in enumerate(curve, 1)]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in spots)
    dots = "".join(
        f'<circle class="{style}" cx="{x:.1f}" cy="{y:.1f}" r="4"><title>{escape(percent(share))}</title></circle>'
        for x, y, share in spots
    )
    label = f"{name} {percent(curve[-1])}"
    return (
        f'<polyline class="{style}" points="{path}"/>{dots}'
        f'<text class="{style}" x="{_WIDTH - _RIGHT + 10}" y="{label_height + 4:.1f}">{escape(label)}</text>'
    )


def _label_heights(heights: Sequence[float]) -> list[float]:
    """Keep two labels at least a line apart."""
    if len(heights) == 2 and abs(heights[0] - heights[1]) < 16:
        middle = sum(heights) / 2
        up = 0 if heights[0] < heights[1] else 1
        placed = [middle + 8, middle + 8]
        placed[up] = middle - 8
        return placed
    return list(heights)


def _x(attempt: int, r_max: int) -> float:
    inner = _WIDTH - _RIGHT - _LEFT - 24
    return _LEFT + 12 + (inner * (attempt - 1) / (r_max - 1) if r_max > 1 else inner / 2)


def _y(share: float) -> float:
    return _TOP + (_HEIGHT - _TOP - _BOTTOM) * (1 - share)
