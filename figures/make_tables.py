"""Fills the tables in models/README.md from each model's model.json, figures/<model>/metrics.json and
figures/benchmark_network.json.

    python figures/make_tables.py

A table stands between `<!-- table: name -->` and `<!-- end -->`. The figures are those of PublicTest.
"""

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "models" / "README.md"
TABLE = re.compile("(<!-- table: ([a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def load_results():
    """Returns for each shipped model its description, its metrics on PublicTest, and bytes and times of its network."""
    benchmark = json.loads((ROOT / "figures" / "benchmark_network.json").read_text(encoding="utf-8"))
    results = {}
    for folder in sorted((ROOT / "models").glob("emotions-?")):
        description = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        metrics = json.loads((ROOT / "figures" / folder.name / "metrics.json").read_text(encoding="utf-8"))
        cost = {"bytes": (folder / "model.tflite").stat().st_size, **benchmark["ms_a_face"][f"models/{folder.name}"]}
        results[folder.name] = description, metrics["splits"]["val"], cost
    return results


def table_of_models(results):
    """Returns size and cost of each model, the accuracy of its heads, and the mean recall of the demo."""
    header = (
        "folder | parameters | multiply-adds | `model.tflite` | ms a face | in float32 | labels | votes | mean recall"
    )
    lines = [f"| {header} |", "|---" * 9 + "|"]
    for name, (description, metrics, cost) in results.items():
        cells = [f"{description['parameters'] / 1e6:.2f} million", f"{description['macs'] / 1e6:.0f} million"]
        cells += [f"{cost['bytes'] / 1e6:.1f} MB", f"{cost['int8']:.1f}", f"{cost['float32']:.1f}"]
        shares = metrics["labels"]["labels"]["accuracy"], metrics["votes"]["consensus"]["accuracy"]
        lines.append(format_row(f"`{name}`", *cells, *shares, metrics["demo"]["consensus"]["balanced_accuracy"]))
    return lines


def table_of_read_outs(results):
    """Returns how well the votes head agrees with the consensus, without and with the bias."""
    lines = ["| folder | output | tau | accuracy | mean recall | ECE |", "|---|---|---|---|---|---|"]
    for name, (description, metrics, _) in results.items():
        for head, output, tau in (("votes", "votes head", 0), ("demo", "demo", description["training"]["tau"])):
            result = metrics[head]["consensus"]
            shares, error = (result["accuracy"], result["balanced_accuracy"]), f"{result['ece']:.3f}"
            lines.append(format_row(f"`{name}`", output, f"{tau:.2f}", *shares, error))
    return lines


def table_of_confidences(results):
    """Returns how often a face is uncertain, and how often the others are right, at each smallest confidence."""
    lines = [
        f"| `--min-confidence` | {' | '.join(f'`{name}`: uncertain | right if shown' for name in results)} |",
        "|---|" + "---|---|" * len(results),
    ]
    columns = [metrics["min_confidence"] for _, metrics, _ in results.values()]
    for lowest in columns[0]:
        lines.append(
            format_row(lowest, *(column[lowest][key] for column in columns for key in ("uncertain", "accuracy")))
        )
    return lines


def format_row(*cells):
    """Returns a row of a table; numbers become percentages."""
    return f"| {' | '.join(cell if isinstance(cell, str) else f'{cell:.1%}' for cell in cells)} |"


TABLES = {"models": table_of_models, "read-outs": table_of_read_outs, "confidences": table_of_confidences}


def fill(text):
    """Returns a text with the lines of every table in it."""
    results = load_results()
    return TABLE.sub(lambda match: match[1] + "\n".join(TABLES[match[2]](results)) + "\n" + match[3], text)


if __name__ == "__main__":
    README.write_text(fill(README.read_text(encoding="utf-8")), encoding="utf-8")
