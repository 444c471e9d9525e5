"""docs/architecture.svg from the import contract in pyproject.toml, and the table of folders in docs/architecture.md from their docstrings.

    python tools/draw_architecture.py

The same contract and docstrings give the same bytes; a test holds the files to them.
"""

from __future__ import annotations

import ast
import textwrap
import tomllib
from collections.abc import Sequence
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DRAWING, PAGE = ROOT / "docs" / "architecture.svg", ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- folders: written by tools/draw_architecture.py -->", "<!-- /folders -->"
WIDTH, LEFT, MARGIN, GAP = 960, 74, 20, 14  # px: of the drawing, the arrow's strip, its edge, between boxes
FLOOR, BOX = 92, 76  # px: from one floor to the next, a box's height
GLYPH = 6.1  # px: a character of the small print, on average
# Attributes, not a style sheet: some viewers of SVG read no CSS.
NAME, WHAT = 'font-size="15" font-weight="bold" fill="#1f2933"', 'font-size="11.5" fill="#52606d"'
# One hue, darker downwards: what more of the code stands on.
SHADES = ("#f7fafc", "#eef4f9", "#e4eef6", "#dae8f3", "#d0e2f0", "#c6dbed", "#bcd5ea", "#b2cfe7", "#a8c9e4")


def floors() -> list[list[str]]:
    """The contract's layers, top first: names of folders below src/drllm."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]
    (layers,) = [contract["layers"] for contract in contracts if contract["type"] == "layers"]
    return [[part.strip().removeprefix("drllm.") for part in layer.split("|")] for layer in layers]


def docstring(folder: str) -> list[str]:
    """A folder's, by paragraph, each on one line."""
    text = ast.get_docstring(ast.parse((ROOT / "src" / "drllm" / folder / "__init__.py").read_text(encoding="utf-8")))
    if not text:
        raise ValueError(f"src/drllm/{folder}/__init__.py has no docstring: say in it what the folder holds and what it imports")
    return [" ".join(paragraph.split()) for paragraph in text.split("\n\n")]


def drawing(layers: Sequence[Sequence[str]]) -> str:
    """The SVG: a floor a layer, a box a folder."""
    height = 2 * MARGIN + FLOOR * len(layers) - (FLOOR - BOX)
    middle, bottom = height / 2, height - MARGIN
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img" '
        'font-family="Helvetica, Arial, sans-serif">',
        "<title>The folders of src/drllm by layer; each imports only what lies below it</title>",
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<rect x="51" y="{MARGIN}" width="2" height="{bottom - MARGIN - 8}" fill="#829ab1"/>',
        f'<path d="M46 {bottom - 9} L52 {bottom} L58 {bottom - 9} Z" fill="#829ab1"/>',
        f'<text {WHAT} text-anchor="middle" transform="translate(36 {middle:g}) rotate(-90)">imports go down only</text>',
    ]
    for floor, folders in enumerate(layers):
        y = MARGIN + floor * FLOOR
        width = (WIDTH - LEFT - MARGIN - GAP * (len(folders) - 1)) / len(folders)
        shade = SHADES[min(floor, len(SHADES) - 1)]
        for place, folder in enumerate(folders):
            x = LEFT + place * (width + GAP)
            lines.append(f'<rect x="{x:g}" y="{y}" width="{width:g}" height="{BOX}" rx="6" fill="{shade}" stroke="#829ab1"/>')
            lines.append(f'<text {NAME} x="{x + 12:g}" y="{y + 22}">{escape(folder)}</text>')
            said = textwrap.wrap(
                docstring(folder)[0].replace("`", ""), int((width - 24) / GLYPH), max_lines=3, placeholder=" …", break_on_hyphens=False
            )
            for row, text in enumerate(said):
                lines.append(f'<text {WHAT} x="{x + 12:g}" y="{y + 39 + 14 * row}">{escape(text)}</text>')
    return "\n".join([*lines, "</svg>"]) + "\n"


def table(layers: Sequence[Sequence[str]]) -> str:
    """The folders, bottom up, as their docstrings describe them."""
    rows = []
    for floor, folders in enumerate(reversed(layers)):
        for folder in folders:
            what, *rest = docstring(folder)
            rows.append(f"| {floor} | `{folder}/` | {what} | {' '.join(rest)} |")
    return "\n".join(["| layer | folder | what it holds | what it may touch |", "|---|---|---|---|", *rows])


def page(text: str, layers: Sequence[Sequence[str]]) -> str:
    """The page with its table made anew."""
    before, _, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"{PAGE} lacks the lines {BEGIN!r} and {END!r}, between which the table of folders stands")
    return f"{before}{BEGIN}\n{table(layers)}\n{END}{after}"


def main() -> None:
    """Write both."""
    layers = floors()
    DRAWING.write_text(drawing(layers), encoding="utf-8")
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), layers), encoding="utf-8")


if __name__ == "__main__":
    main()
