"""Measures how the demo has to cut out a face so that it is framed as FER2013 frames it.

    python tests/benchmark_crop.py                   needs data/fer2013.csv; about three minutes on two cores

PublicTest faces, enlarged four times, are put into a larger picture, found by the real cascade, cut out with the box
grown by a margin and shifted downwards, and scored. Writes figures/crop.json and figures/crop.png.
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

import utils

SIDE = 192  # Pixels of an enlarged face.
BORDER = 84  # Pixels around it, a continuation of its edge.
MARGINS = np.round(np.arange(-0.2, 0.51, 0.1), 2)  # Share of the cascade's box, both sides together.
SHIFTS = (-0.05, 0.0, 0.05)  # Share of the cascade's box, downwards.


def find_face(face, detector):
    """Returns the picture, uint8 (360, 360), with the enlarged face, and the cascade's box of it or None."""
    enlarged = cv2.resize(face, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    picture = cv2.copyMakeBorder(enlarged, BORDER, BORDER, BORDER, BORDER, cv2.BORDER_REPLICATE)
    boxes = np.array(detector.detectMultiScale(picture, 1.1, 5, minSize=(72, 72))).reshape(-1, 4)
    centers = boxes[:, :2] + boxes[:, 2:] / 2
    inside = boxes[np.abs(centers - len(picture) / 2).max(axis=1) < SIDE / 4]
    return picture, inside[0] if len(inside) else None


def grow(box, margin, shift):
    x, y, width, height = box
    grown = width * (1 + margin)
    corner = (x + width / 2 - grown / 2, y + height / 2 - grown / 2 + shift * height)
    return np.rint((*corner, grown, grown)).astype(int)


def main():
    faces, labels = utils.load_fer2013(utils.DEFAULT_DATA, "val", 5)
    model, detector = utils.load_emotion_model(utils.DEFAULT_MODEL), utils.load_face_detector()
    found = [find_face(face[..., 0], detector) for face in faces]
    seen = np.array([box is not None for _, box in found])
    accuracy = {}
    for shift in SHIFTS:
        for margin in MARGINS:
            crops = [utils.crop_faces(picture, [grow(box, margin, shift)]) for picture, box in found if box is not None]
            predicted = model.predict(np.concatenate(crops)).argmax(axis=1)
            accuracy[shift, margin] = float(np.mean(predicted == labels[seen]))
    plain = float(np.mean(model.predict(faces[seen]).argmax(axis=1) == labels[seen]))
    (shift, margin), best = max(accuracy.items(), key=lambda item: item[1])
    result = {"split": "PublicTest", "rows": len(faces), "found": int(seen.sum()), "accuracy_of_found_as_in_csv": plain}
    result |= {"best": {"margin": margin, "shift": shift, "accuracy": best}}
    result["accuracy"] = {str(s): {str(m): accuracy[s, m] for m in MARGINS} for s in SHIFTS}
    print(json.dumps({name: value for name, value in result.items() if name != "accuracy"}, indent=2))
    (ROOT / "figures" / "crop.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    draw(accuracy, plain, int(seen.sum()))


def draw(accuracy, plain, count):
    fig, ax = plt.subplots(figsize=(7, 4))
    for shift, color in zip(SHIFTS, plt.cm.viridis(np.linspace(0, 0.9, len(SHIFTS))), strict=True):
        ax.plot(
            MARGINS, [accuracy[shift, m] for m in MARGINS], "o-", color=color, markersize=3, label=f"shift {shift:+.2f}"
        )
    ax.axhline(plain, color="gray", linestyle="--", label="framed as in the CSV")
    ax.set(
        xlabel="Margin added to the cascade's box",
        ylabel="Accuracy",
        title=f"{count:,} PublicTest faces that the cascade finds",
    )
    ax.grid(alpha=0.3)
    ax.legend(fontsize=8)
    fig.savefig(ROOT / "figures" / "crop.png", dpi=150, bbox_inches="tight")
    plt.close(fig)


if __name__ == "__main__":
    main()
