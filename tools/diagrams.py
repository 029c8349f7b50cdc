"""Draw the diagrams of the notebooks as SVG: ``python -m tools.diagrams``."""

from pathlib import Path

from helpers.config import ROOT

FOLDER = ROOT / "notebooks" / "images"
INK, FAINT, ORANGE = "#222222", "#666666", "#a34700"
SHADES = ("#8c3d00", "#D55E00", "#e98743", "#f3b48a", "#fae0cf")  # short prefixes to full size


def text(x, y, words, size=15, color=INK, anchor="middle", weight="normal") -> str:
    """A line of text, its middle at ``y``."""
    return (
        f'<text x="{x}" y="{y + size * 0.35:.1f}" font-size="{size}" fill="{color}" '
        f'text-anchor="{anchor}" font-weight="{weight}">{words}</text>'
    )


def box(x, y, width, height, words="", fill="#ffffff", color=INK, size=15) -> str:
    """A rectangle with a line of text in its middle."""
    found = (
        f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="5" fill="{fill}" '
        f'stroke="{INK}" stroke-width="1"/>'
    )
    return found + (text(x + width / 2, y + height / 2, words, size, color) if words else "")


def arrow(x1, y1, x2, y2) -> str:
    """An arrow from one point to another."""
    return (
        f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="{INK}" stroke-width="1.5" '
        'marker-end="url(#head)"/>'
    )


def svg(width, height, *parts) -> str:
    """A whole picture, on white ground."""
    head = (
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        f'markerHeight="7" orient="auto"><path d="M0 0L8 4L0 8z" fill="{INK}"/></marker></defs>'
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" font-family="Helvetica, Arial, sans-serif">{head}'
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>{"".join(parts)}</svg>\n'
    )


def nested() -> str:
    """One embedding as a strip, and the prefixes that are embeddings too."""
    dims, scale, left = (32, 64, 128, 256, 384), 1.5, 30
    parts, before = [], 0
    for dim, shade in zip(dims, SHADES, strict=True):
        x, width = left + before * scale, (dim - before) * scale
        parts.append(f'<rect x="{x}" y="50" width="{width}" height="44" fill="{shade}"/>')
        before = dim
    parts.append(text(left, 28, "one embedding: 384 dimensions", anchor="start", weight="bold"))
    for row, dim in enumerate(reversed(dims[:-1])):
        y, end = 112 + 24 * row, left + dim * scale
        parts.append(f'<path d="M{left} {y}H{end}" stroke="{INK}" stroke-width="2"/>')
        parts.append(f'<path d="M{end} {y - 6}v12M{left} {y - 6}v12" stroke="{INK}"/>')
        words = f"the first {dim}: also an embedding"
        parts.append(text(end + 10, y, words, 14, anchor="start"))
    return svg(690, 206, *parts)


def loss() -> str:
    """One forward pass, a loss for each prefix, and their sum."""
    parts = [
        box(20, 95, 120, 50, "batch of texts"),
        arrow(140, 120, 180, 120),
        box(182, 95, 90, 50, "model"),
        arrow(272, 120, 312, 120),
        text(227, 165, "one pass", 13, FAINT),
    ]
    for row, (dim, shade) in enumerate(zip((384, 256, 128, 64, 32), SHADES[::-1], strict=True)):
        y = 20 + 42 * row
        width = 50 + dim * 0.32
        parts += [
            box(315, y, width, 28, f"first {dim}", shade, "#ffffff" if dim < 100 else INK, 13),
            arrow(315 + width, y + 14, 530, y + 14),
            box(532, y, 110, 28, "ranking loss", size=13),
            arrow(642, y + 14, 716, 120),
        ]
    parts += [box(718, 95, 60, 50, "sum"), arrow(778, 120, 812, 120), text(836, 120, "loss")]
    return svg(870, 240, *parts)


def funnel() -> str:
    """Shortlist by the prefix, rerank at full size."""
    parts = [
        '<path d="M30 40L330 80V140L30 180z" fill="#fae0cf" stroke="#222222"/>',
        text(160, 100, "all passages", 16),
        text(160, 124, "64 dimensions", 14, ORANGE),
        '<path d="M370 70L600 86V134L370 150z" fill="#e98743" stroke="#222222"/>',
        text(480, 102, "shortlist of 100", 15),
        text(480, 122, "384 dimensions", 13),
        arrow(332, 110, 366, 110),
        arrow(602, 110, 642, 110),
        box(645, 88, 100, 44, "best 10"),
        text(160, 205, "in fast memory", 13, FAINT),
        text(480, 205, "may be on disk", 13, FAINT),
    ]
    return svg(770, 225, *parts)


def series() -> str:
    """The six notebooks, and what each hands to the next."""
    names = ("setup", "data", "baseline", "training", "evaluation", "deployment")
    made = ("a run", "triplets", "bars to beat", "two models", "the verdict", "a search")
    parts = []
    for place, (name, what) in enumerate(zip(names, made, strict=True)):
        x = 15 + 150 * place
        fill = "#fae0cf" if name == "training" else "#f2f2f2"
        parts.append(box(x, 30, 118, 46, f"{place + 1} {name}", fill, size=14))
        parts.append(text(x + 59, 98, what, 13, FAINT))
        if place:
            parts.append(arrow(x - 32, 53, x - 2, 53))
    return svg(915, 120, *parts)


def main(folder: Path = FOLDER) -> None:
    folder.mkdir(exist_ok=True)
    for draw in (nested, loss, funnel, series):
        (folder / f"{draw.__name__}.svg").write_text(draw(), encoding="utf-8")


if __name__ == "__main__":
    main()
