"""Draw what was measured: the plots and the table of docs/explanation/benchmarks.rst, from the numbers beside it.

    python tests/benchmarks/plots.py

draws again from the committed numbers; ``tox run -e bench -- --redraw`` measures first.
"""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent.parent.parent / "docs"
NUMBERS = DOCS / "explanation" / "benchmarks.json"
TABLE = DOCS / "explanation" / "benchmarks.inc"
PLOTS = DOCS / "_static"

#: Neither black nor white: the plots lie on light and on dark pages.
INK = "#7f7f7f"
OURS = {
    "write_bytes": "#d2691e",
    "with atomic_write": "#b8860b",
    "batch": "#2e8b57",
    "write_bytes, one at a time": "#d2691e",
}
BY_HAND = "by hand"


def colour(name: str) -> str:
    return OURS.get(name, "#4682b4" if name == BY_HAND else INK)


def draw(numbers: dict[str, Any], folder: Path) -> list[Path]:
    """Draw all plots into *folder*."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams.update(
        {
            "svg.fonttype": "none",  # text stays text: small files, and the page's own size
            "svg.hashsalt": "atomicio",
            "font.family": "sans-serif",
            "font.size": 10,
            "text.color": INK,
            "axes.edgecolor": INK,
            "axes.labelcolor": INK,
            "axes.titlecolor": INK,
            "xtick.color": INK,
            "ytick.color": INK,
            "legend.frameon": False,
            "axes.spines.top": False,
            "axes.spines.right": False,
        }
    )
    places = numbers["places"]
    return [
        _levels(places, folder / "bench-levels.svg"),
        _lines(
            places,
            "sizes",
            {"tmpfs": "tmpfs, nothing synced", "ext4": "ext4, durable"},
            "bytes",
            "seconds for one write",
            folder / "bench-sizes.svg",
        ),
        _lines(
            places,
            "many",
            {"tmpfs": "tmpfs", "ext4": "ext4"},
            "durable files of 4 KiB",
            "seconds for all",
            folder / "bench-many.svg",
        ),
        _lines(
            places,
            "processes",
            {"tmpfs": "tmpfs, nothing synced", "ext4": "ext4, durable"},
            "processes",
            "writes per second, in all",
            folder / "bench-processes.svg",
        ),
    ]


def _save(figure: Any, path: Path) -> Path:
    from matplotlib import pyplot

    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, bbox_inches="tight", metadata={"Date": None, "Creator": None})
    pyplot.close(figure)
    # A third of the size: without what matplotlib says about itself, and with coordinates of a tenth of a point.
    text = re.sub(
        r"<!--.*?-->|<metadata>.*?</metadata>|<\?xml.*?\?>|<!DOCTYPE.*?>", "", file.getvalue(), flags=re.DOTALL
    )
    text = re.sub(r"\d+\.\d\d+", lambda number: f"{float(number[0]):.1f}".removesuffix(".0"), text)
    text = re.sub(r"font-family: [^;]*", "font-family: sans-serif", text)
    text = re.sub(r' transform="rotate\(-0 [^"]*"|[ ]?clip-path="[^"]*"', "", text)
    path.write_text(re.sub(r"\s*\n\s*", "\n", text).strip() + "\n", encoding="utf-8")
    return path


def _levels(places: dict[str, Any], path: Path) -> Path:
    """Bars: how many times the hand-written sequence, at each level."""
    from matplotlib import pyplot

    titles = {"none": "nothing synced", "consistent": "file synced", "durable": "file and directory synced"}
    heights = [max(len(place["levels"][level]) for place in places.values()) for level in titles]
    figure, axes = pyplot.subplots(
        3, len(places), figsize=(8.5, 1.2 + 0.26 * sum(heights)), squeeze=False, height_ratios=heights
    )
    for column, (place, found) in enumerate(places.items()):
        for row, (level, title) in enumerate(titles.items()):
            axis = axes[row][column]
            bars = found["levels"][level][::-1]
            axis.barh(
                [name for name, _, _ in bars], [ratio for *_, ratio in bars], color=[colour(bar[0]) for bar in bars]
            )
            for position, (_, microseconds, ratio) in enumerate(bars):
                words = f"{ratio:.1f}×, {microseconds:,.0f} µs"
                axis.annotate(words, (ratio, position), (3, 0), textcoords="offset points", va="center", fontsize=8)
            axis.set_xlim(0, 1.45 * max(ratio for *_, ratio in bars))
            axis.set_title(f"{place}, {title}", fontsize=10, loc="left")
            axis.tick_params(length=0, labelsize=8)
            axis.set_xticks([])
            axis.spines["bottom"].set_visible(False)
    figure.tight_layout()
    return _save(figure, path)


def _lines(places: dict[str, Any], series: str, titles: dict[str, str], x: str, y: str, path: Path) -> Path:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(places), figsize=(8.5, 3.6), squeeze=False)
    for axis, (place, found) in zip(axes[0], places.items(), strict=True):
        for name, points in found[series].items():
            known = name in OURS or name == BY_HAND
            axis.plot(
                [point[0] for point in points],
                [point[1] for point in points],
                color=colour(name),
                label=name if known else None,
                linewidth=1.8 if known else 0.7,
                linestyle="--" if name == BY_HAND else "-",
                marker="o" if known else None,
                markersize=3,
            )
        _name_the_others(axis, found[series])
        axis.set_xscale("log", base=2 if series != "many" else 10)
        axis.set_yscale("linear" if series == "processes" else "log")
        if series == "processes":
            axis.set_ylim(bottom=0)
            axis.set_xticks([point[0] for point in points], [str(point[0]) for point in points])
        elif series == "sizes":
            ticks = {0: "1 B", 10: "1 KiB", 20: "1 MiB", 30: "1 GiB"}
            axis.set_xticks([1 << power for power in ticks], list(ticks.values()))
        axis.minorticks_off()
        axis.set_title(titles.get(place, place), fontsize=10, loc="left")
        axis.set_xlabel(x)
        axis.grid(color=INK, alpha=0.2)
    axes[0][0].set_ylabel(y)
    axes[0][0].legend(fontsize=8)
    figure.tight_layout()
    return _save(figure, path)


def _name_the_others(axis: Any, series: dict[str, list[tuple[int, float]]]) -> None:
    """Name each grey line where it begins, but for those that would lie on another's name."""
    last = 0.0
    for (x, y), name in sorted(
        (points[0], name) for name, points in series.items() if name not in OURS and name != BY_HAND
    ):
        if y > 1.15 * last:
            axis.annotate(name, (x, y), (0, 2), textcoords="offset points", fontsize=6)
            last = y


def as_rst(numbers: dict[str, Any]) -> str:
    """Write what the plots show as a table, with the machine it was measured on."""
    low, high = numbers["load"]
    lines = [
        f"Measured on {numbers['system']}, CPython {numbers['python']}, in {numbers['seconds']} seconds.",
        f"The load average was {low} at the beginning and {high} at the end, of which 1 is this measurement itself.",
        "The ratios on tmpfs are of processor time, and stand; what the clock measured (ext4, many files, many processes) is",
        "no better than that load lets it be.",
        "",
        ".. list-table:: One write of 1 KiB over 1 KiB: times the hand-written sequence (microseconds)",
        "   :header-rows: 1",
        "",
        "   * - what",
        *(f"     - {place}, {level}" for place in numbers["places"] for level in ("none", "consistent", "durable")),
    ]
    cells: dict[str, dict[tuple[str, str], str]] = {}
    for place, found in numbers["places"].items():
        for level, results in found["levels"].items():
            for name, microseconds, ratio in results:
                cells.setdefault(name, {})[place, level] = f"{ratio:.2f} ({microseconds:,.0f})"
    for name, row in cells.items():
        columns = [(place, level) for place in numbers["places"] for level in ("none", "consistent", "durable")]
        if any(column in row for column in columns):
            lines.append(f"   * - {name}")
            lines += [f"     - {row.get(column, '')}".rstrip() for column in columns]
    for level in ("a binary file object", "a text file object"):
        for name, microseconds, ratio in numbers["places"].get("tmpfs", {}).get("levels", {}).get(level, [])[1:]:
            lines += [
                "",
                f"Through {level}, on tmpfs with nothing synced, ``{name}`` takes {ratio:.2f} times the same by hand ",
            ]
            lines[-1] += f"({microseconds:,.0f} microseconds)."
    return "\n".join(lines) + "\n"


def write(numbers: dict[str, Any]) -> None:
    # One line for each point.
    text = re.sub(r"\[[^][]*\]", lambda point: " ".join(point[0].split()), json.dumps(numbers, indent=1))
    NUMBERS.write_text(text + "\n", encoding="utf-8")
    redraw()


def redraw() -> None:
    numbers = json.loads(NUMBERS.read_text(encoding="utf-8"))
    TABLE.write_text(as_rst(numbers), encoding="utf-8")
    draw(numbers, PLOTS)


if __name__ == "__main__":
    redraw()
