"""Averages what the networks of all folds read in the faces they have not seen into data/soft_labels-7.npz.

    python train.py --classes 7 --fold 0             first, for every fold from 0 to 4, of one network or both
    python data/make_soft_labels.py

Also writes figures/soft_labels.json and .png: how often the soft labels agree with the labels, and the faces whose
label they doubt most.
"""

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import distillation
import evaluate
import utils

FOLD_ARRAYS = ("hashes", "probabilities", "val_probabilities", "val_labels", "run")  # Of one file of `train.py --fold`.


def read_folds(folder):
    """Reads what `train.py --fold` wrote.

    Returns:
        networks: dict from a network's name to its list of FOLDS dicts of arrays.

    Raises:
        FileNotFoundError: a fold of a network is missing, or there is none at all.
        ValueError: the folds of a network are of different runs, so that one may have trained on another's faces.
    """
    names = sorted({path.parent.name.rpartition("-")[0] for path in folder.glob("*-7-?/out_of_fold.npz")})
    networks = {}
    for name in names or ["small-7"]:
        networks[name] = []
        for fold in range(distillation.FOLDS):
            path = folder / f"{name}-{fold}" / "out_of_fold.npz"
            if not path.exists():
                command = f"python train.py --classes 7 --network {name.removesuffix('-7')} --fold {fold}"
                raise FileNotFoundError(
                    f"All {distillation.FOLDS} folds are needed. Missing: {path}. Make it: {command}"
                )
            networks[name].append(read_fold(path))
        if len({str(fold["run"]) for fold in networks[name]}) > 1:
            raise ValueError(
                f"The folds of a network may differ in --fold and --seed only. Received: {folder / name}-*, which "
                "differ in data, length or recipe. Train them anew."
            )
    return networks


def read_fold(path):
    """Reads one file of `train.py --fold`.

    Raises:
        ValueError: it is damaged.
    """
    try:
        fold = dict(zip(FOLD_ARRAYS, distillation.read_arrays(path, *FOLD_ARRAYS), strict=True))
    except ValueError as error:
        raise ValueError(f"{path} must be written by train.py --fold. Received: {error}.") from error
    shapes = fold["probabilities"].shape, fold["val_probabilities"].shape
    if shapes != ((len(fold["hashes"]), 7), (len(fold["val_labels"]), 7)):
        raise ValueError(f"{path} must hold seven probabilities a face. Received: arrays of shape {shapes}.")
    return fold


def average(networks):
    """Returns hashes, uint64 (N,), of every image once, and its probabilities, float (N, 7), averaged over networks."""
    tables = []
    for folds in networks.values():
        hashes, probabilities = (np.concatenate([fold[key] for fold in folds]) for key in ("hashes", "probabilities"))
        tables.append(pd.DataFrame(probabilities, index=hashes))
    table = pd.concat(tables).groupby(level=0).mean()
    return table.index.to_numpy(np.uint64), table.to_numpy()


def report(networks, labels, probabilities):
    """Returns how good the networks and their average are on PublicTest, and how the soft labels agree with the labels.

    Args:
        networks: from `read_folds`.
        labels: int (N,), of Training.
        probabilities: float (N, 7), the soft labels of the same faces.
    """
    agree = probabilities.argmax(axis=1) == labels
    val_labels = next(iter(networks.values()))[0]["val_labels"]
    per_network = {name: [fold["val_probabilities"] for fold in folds] for name, folds in networks.items()}
    everything = np.mean(list(per_network.values()), axis=(0, 1))
    return {
        "rows": len(labels),
        "agreement": float(agree.mean()),
        "confidence": float(probabilities.max(axis=1).mean()),  # Calibrated where it is what the agreement is.
        "agreement_per_class": {utils.EMOTIONS[i]: float(agree[labels == i].mean()) for i in np.unique(labels)},
        "publictest_accuracy": {
            **{name: [score(fold, val_labels) for fold in folds] for name, folds in per_network.items()},
            "average": score(everything, val_labels),
        },
    }


def score(probabilities, labels):
    return float(np.mean(probabilities.argmax(axis=1) == labels))


def draw(faces, labels, probabilities, result, path):
    """Draws the agreement per class, and the faces whose label the soft label doubts most."""
    fig = plt.figure(figsize=(12, 12.5), layout="constrained")
    upper, lower = fig.subfigures(2, height_ratios=(1, 4.2))
    ax = upper.subplots()
    shares = result["agreement_per_class"]
    bars = ax.bar(shares.keys(), shares.values(), color=[utils.rgb(name) for name in shares])
    ax.bar_label(bars, [f"{share:.0%}" for share in shares.values()])
    ax.set(ylim=(0, 1.1), ylabel="Share of faces", title="Faces whose soft label agrees with their label")
    doubted = np.argsort(probabilities[np.arange(len(labels)), labels], kind="stable")[: evaluate.FACES_SHOWN]
    evaluate.draw_faces(lower, faces[doubted], labels[doubted], probabilities[doubted], utils.EMOTIONS)
    lower.suptitle("The labels that are doubted most")
    fig.savefig(path, dpi=120)
    plt.close(fig)


def make_soft_labels(data, folder, output, figures):
    """Writes the soft labels and their report; returns the report."""
    faces, labels = utils.load_fer2013(data, "train", 7)
    networks = read_folds(folder)
    with utils.replaced_file(output) as new:
        distillation.save_soft_labels(new, *average(networks))
        probabilities, share = distillation.load_soft_labels(new, faces, 7)
        known = share > 0
        if not known.any():
            raise ValueError(f"The folds must be of the faces of {data}. Received: {folder}, which hold none of them.")
        result = report(networks, labels[known], probabilities[known])
    figures.mkdir(parents=True, exist_ok=True)
    draw(faces[known], labels[known], probabilities[known], result, figures / "soft_labels.png")
    (figures / "soft_labels.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return result


def main(argv=None):
    parser = argparse.ArgumentParser(
        usage=argparse.SUPPRESS, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=utils.DEFAULT_DATA, help="data set (default: data/fer2013.csv)")
    parser.add_argument("--folds", type=Path, default=ROOT / "models" / "folds", help="(default: models/folds)")
    parser.add_argument(
        "--output", type=Path, default=distillation.DEFAULT_PATH, help="(default: data/soft_labels-7.npz)"
    )
    parser.add_argument(
        "--figures", type=Path, default=ROOT / "figures", help="folder of the report (default: figures)"
    )
    args = parser.parse_args(argv)
    utils.make_any_name_printable()
    try:
        result = make_soft_labels(args.data, args.folds, args.output, args.figures)
    except (OSError, ValueError) as error:
        print(f"make_soft_labels.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    print(f"{json.dumps(result, indent=2)}\nWrote {args.output} and {args.figures / 'soft_labels.png'}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
