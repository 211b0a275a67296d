"""Measures the figures of data/README.md: counts, hashes, copies, and how often labels and votes agree.

python tests/benchmarks/measure_data.py --votes fer2013new.csv   a few seconds; writes data/fer2013.json
"""

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np

import fer2013
import utils


def count_copies(data, num_classes):
    """Returns how many faces of a split are exact copies of an earlier one in it, or of one in another split."""
    faces = {split: data.select(split, num_classes)[0] for split in fer2013.SPLITS}
    within = {
        split: len(images) - len(np.unique(images.reshape(len(images), -1), axis=0)) for split, images in faces.items()
    }
    pairs = (("val", "train"), ("test", "train"), ("test", "val"))
    between = {f"{a} in {b}": int(fer2013.find_copies(faces[a], faces[b]).sum()) for a, b in pairs}
    return {f"within {split}": copies for split, copies in within.items()} | between


def compare_votes(data, votes, split, num_classes):
    """Returns how often the labels of a split agree with most votes and with the consensus."""
    _, labels = data.select(split, num_classes)
    shares, weights, consensus = votes.select(split, num_classes)
    voted, agreed = weights > 0, consensus >= 0
    return {
        "faces": len(labels),
        "faces_with_votes": int(voted.sum()),
        "labels_equal_most_votes": round(float(np.mean(shares.argmax(axis=1)[voted] == labels[voted])), 4),
        "faces_with_consensus": int(agreed.sum()),
        "labels_equal_consensus": round(float(np.mean(consensus[agreed] == labels[agreed])), 4),
    }


def measure(data, votes):
    result = {"counts": {}, "sha256": {}, "copies": {}, "votes": {}}
    for split in fer2013.SPLITS:
        labels = data.select(split, 7)[1]
        result["counts"][split] = dict(zip(utils.EMOTIONS, np.bincount(labels, minlength=7).tolist(), strict=True))
    for num_classes in utils.CLASS_SETS:
        parts = {split: fer2013.hash_split(*data.select(split, num_classes)) for split in fer2013.SPLITS}
        result["sha256"][f"{num_classes} classes"] = parts
        result["copies"][f"{num_classes} classes"] = count_copies(data, num_classes)
        result["votes"][f"{num_classes} classes"] = {
            split: compare_votes(data, votes, split, num_classes) for split in fer2013.SPLITS
        }
    return result


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=fer2013.DEFAULT_DATA, help="(default: data/fer2013.csv)")
    parser.add_argument("--votes", type=Path, required=True, help="fer2013new.csv of FER+")
    parser.add_argument(
        "--output", type=Path, default=ROOT / "data" / "fer2013.json", help="(default: data/fer2013.json)"
    )
    args = parser.parse_args(argv)
    data = fer2013.read(args.data)
    text = json.dumps(measure(data, data.read_votes(args.votes)), indent=2)
    args.output.write_text(text + "\n", encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
