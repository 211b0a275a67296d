"""Counts how often a face's label changes with the average over time and without, on the bundled clip with noise.

    python tests/benchmark_labels.py                 half a minute

The people of the clip do not change their expression, so every change is flicker; the noise is that of a camera in a
dim room, as strong as it takes for a label to be in doubt. Writes figures/steadiness.json and .png.
"""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import cv2
import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np

import sources
import utils
from tracking import FaceTracker

NOISE = 30  # Gray levels: standard deviation of every pixel in every frame.


def follow(clip, model):
    """Labels every frame twice.

    Returns:
        dict from a face's number to a list of (time_s, label of the frame alone, label of the average).
    """
    tracker, labels, rng = FaceTracker(utils.load_face_detector()), {}, np.random.default_rng(0)
    source = sources.open_source(str(clip))
    for frame, time_s, _ in source.frames():
        gray = cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY)
        gray = np.clip(gray + rng.normal(0, NOISE, gray.shape), 0, 255).astype(np.uint8)
        alone = model.predict(utils.crop_faces(gray, tracker.find(gray, time_s)))
        averaged = tracker.average(alone, time_s)
        rows = zip(tracker.numbers(), alone.argmax(axis=1), averaged.argmax(axis=1), strict=True)
        for number, *pair in rows:
            labels.setdefault(number, []).append((time_s, *(model.classes[i] for i in pair)))
    source.close()
    return labels


def changes_per_second(labels, column):
    """Returns the changes of label per second in which a face was there, over all faces."""
    changes = sum(a[column] != b[column] for rows in labels.values() for a, b in zip(rows, rows[1:], strict=False))
    return changes / sum(rows[-1][0] - rows[0][0] for rows in labels.values())


def draw(labels, path):
    """Draws the label of every moment as a colour, for each face a band without the average above one with it."""
    fig, axes = plt.subplots(len(labels), figsize=(10, 1 + 1.1 * len(labels)), sharex=True, layout="constrained")
    shown = {}
    for ax, (number, rows) in zip(np.atleast_1d(axes), labels.items(), strict=True):
        for bottom, column in ((1, 1), (0, 2)):
            for time_s, *pair in rows:
                name = pair[column - 1]
                shown[name] = ax.barh(bottom, 0.04, left=time_s, height=0.8, color=utils.rgb(name))
        ax.set(yticks=(0, 1), yticklabels=("average", "frame alone"), title=f"Face {number}")
    axes[-1].set_xlabel("Seconds")
    fig.legend(shown.values(), shown.keys(), loc="outside upper center", ncols=len(shown), frameon=False)
    fig.savefig(path, dpi=120)
    plt.close(fig)


def main():
    labels = follow(sources.DEMO_CLIP, utils.load_emotion_model(utils.DEFAULT_MODEL))
    result = {"clip": "data/demo.mp4", "noise": NOISE, "faces": len(labels)}
    for name, column in (("frame_alone", 1), ("average", 2)):
        result[f"changes_per_s_{name}"] = round(changes_per_second(labels, column), 3)
    print(json.dumps(result, indent=2))
    (ROOT / "figures" / "steadiness.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    draw(labels, ROOT / "figures" / "steadiness.png")


if __name__ == "__main__":
    main()
