"""What a log of the demo says in the end: a summary, and a picture of the emotions over time.

    python timeline.py emotions.csv                prints the summary and draws emotions-timeline.png

The demo does the same for its --log, after its loop, so that neither costs a frame.
"""

import argparse
import csv
import json
import sys
import warnings
from collections import Counter, defaultdict
from pathlib import Path

import utils

MAX_TRACKS = 6  # In the picture: those seen longest.
MAX_PEOPLE = 12  # In the summary.
LONGEST_FRAME = 1.0  # Seconds that one row stands for at most: while a stream stalls, nobody was seen.


def read_log(path):
    """Reads a log of the demo, CSV or JSON lines.

    Returns:
        list of dict of str, a row each; empty fields are "".

    Raises:
        ValueError, AttributeError, csv.Error, RecursionError: it is no such log.
    """
    with open(path, newline="", encoding="utf-8-sig") as file:  # Spreadsheets put a mark before the first column.
        json_lines = path.suffix.lower() == ".jsonl"
        rows = [json.loads(line) for line in file if line.strip()] if json_lines else list(csv.DictReader(file))
    rows = [{name: "" if value is None else str(value) for name, value in row.items()} for row in rows]
    if rows and not ({"frame", "time_s", "track", "label"} <= rows[0].keys() and set(utils.EMOTIONS) & rows[0].keys()):
        raise ValueError("other columns")
    return rows


def add_durations(rows):
    """Adds to every row the seconds until the next frame; the last frame of a file counts as long as the one before."""
    times = {}
    for row in rows:
        times.setdefault(row.get("file"), {})[row["frame"]] = float(row["time_s"])
    durations = {}
    for frames in times.values():
        frames = dict(sorted(frames.items(), key=lambda item: item[1]))  # A spreadsheet may have sorted the rows.
        starts = list(frames.values())
        steps = [min(LONGEST_FRAME, after - before) for before, after in zip(starts, starts[1:], strict=False)]
        durations |= dict(zip(frames, [*steps, *(steps[-1:] or [0.0])], strict=True))
    for row in rows:
        row["duration"] = durations[row["frame"]]


def people(rows):
    """Returns (file, track) -> rows, whoever was seen longest first."""
    found = defaultdict(list)
    for row in rows:
        if row["track"]:
            found[row.get("file"), row["track"]].append(row)
    return dict(sorted(found.items(), key=lambda item: -sum(row["duration"] for row in item[1])))


def summarize(rows):
    """Returns the summary as text: who was seen for how long, and what share of it each emotion had."""
    add_durations(rows)
    found, frames = people(rows), len({row["frame"] for row in rows})
    seconds = sum({row["frame"]: row["duration"] for row in rows}.values())
    faces = sum(len(seen) for seen in found.values())
    lines = [f"{faces} faces in {frames} frames, {len(found)} people or scenes"]
    lines[0] += f" ({60 * len(found) / seconds:.1f} a minute)." if seconds else "."
    for (file, track), seen in list(found.items())[:MAX_PEOPLE]:
        shares = Counter()
        for row in seen:
            shares[row["label"]] += row["duration"] or 1e-9
        total = shares.total()
        emotions = ", ".join(f"{label} {share / total:.0%}" for label, share in shares.most_common())
        lines.append(f"  {f'{file}, ' if file else ''}face {track}: {total:.1f} s, {emotions}")
    if len(found) > MAX_PEOPLE:
        lines.append(f"  and {len(found) - MAX_PEOPLE} more, seen for less")
    return "\n".join(lines)


def plot_timeline(rows, path):
    """Draws the probabilities of each face over time, stacked, in the colours of the classes.

    Args:
        rows: of `read_log`, after `summarize`.
        path: of the picture.

    Raises:
        ImportError: Matplotlib is not installed.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    warnings.filterwarnings("ignore", "Glyph .* missing from font")  # A file's name in letters that the font has not.
    found = sorted(list(people(rows).items())[:MAX_TRACKS], key=lambda item: float(item[1][0]["time_s"]))
    classes = [name for name in utils.EMOTIONS if name in rows[0]]
    count = max(1, len(found))
    fig, axes = plt.subplots(count, figsize=(10, 1 + 1.6 * count), sharex=True, squeeze=False, layout="constrained")
    for ax, ((file, track), seen) in zip(axes[:, 0], found, strict=False):
        times = [float(row["time_s"]) for row in seen]
        times.append(times[-1] + seen[-1]["duration"])  # What was seen last stays until the next frame.
        columns = [[float(row[name]) for row in [*seen, seen[-1]]] for name in classes]
        ax.stackplot(times, columns, labels=classes, colors=[utils.rgb(name) for name in classes])
        name = f"{file}, ".replace("$", r"\$") if file else ""  # Between two dollars Matplotlib reads mathematics.
        ax.set(ylim=(0, 1), ylabel=f"{name}face {track}", yticks=(0, 0.5, 1))
    if found:
        fig.legend(
            *axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=len(classes), frameon=False
        )
    axes[-1, 0].set_xlabel("Seconds")
    fig.savefig(path, dpi=120, bbox_inches="tight")
    plt.close(fig)


def picture_path(log):
    """Returns where the picture of a log is drawn."""
    return log.with_name(f"{log.stem}-timeline.png")


def report(log):
    """Returns the summary of a log and draws its picture beside it; says so where that is not possible.

    Raises:
        ValueError: it is no log, or a damaged one.
    """
    try:
        rows = read_log(log)
        if not rows:
            return f"{log} has no rows."
        summary = summarize(rows)
        if not any(row["duration"] for row in rows):  # Images have no time to draw.
            return summary
        return f"{summary}\n{draw_beside(log, rows)}"
    except (ValueError, KeyError, AttributeError, csv.Error, RecursionError) as error:
        raise ValueError(f"{log} must be a log that webcam_demo.py wrote. Received: {error}.") from error


def draw_beside(log, rows):
    """Draws the picture of a log; returns a sentence that says where it is, or why there is none."""
    picture = picture_path(log)
    try:
        plot_timeline(rows, picture)
    except ImportError:
        return f"For a picture of the log: pip install matplotlib, then python timeline.py {log}"
    except OSError as error:
        return f"The picture of the log cannot be written: {error}."
    return f"Drew {picture}."


def main(argv=None):
    parser = argparse.ArgumentParser(
        usage=argparse.SUPPRESS, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("log", type=Path, help="log of webcam_demo.py, .csv or .jsonl")
    args = parser.parse_args(argv)
    utils.make_any_name_printable()
    try:
        print(report(args.log))
    except (OSError, ValueError) as error:
        print(f"timeline.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
