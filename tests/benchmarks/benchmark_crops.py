"""Measures what happens to a face between the camera and the network: tilt, profile, darkness, low contrast.

    python tests/benchmarks/benchmark_crops.py   prints the numbers, writes figures/benchmark_crops.json and .png
    python tests/benchmarks/benchmark_crops.py --model models/emotions-7

The accuracy is that of the demo's probabilities against the consensus of FER+. PublicTest's faces are enlarged to 120
pixels and tilted by -30 to 30 degrees in a frame, then cut out as they are, turned upright by the known angle, and
turned by the nearest of the angles that the tracker knows. Which faces are profiles is not known: those that only
the profile cascade finds are counted. Darkened faces and faces of low contrast go to the network as they are, and
equalised in two ways.
"""

import argparse
import json
import sys
from pathlib import Path

import cv2
import matplotlib.pyplot as plt
import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import fer2013
import plots
import tracking
import utils

FIGURE = ROOT / "figures" / "benchmark_crops.json"
ANGLES = range(-30, 31, 10)  # degrees
WIDTH, MARGIN = 120, 60  # pixels of the enlarged face, and around it
GAINS = (1, 0.5, 0.25, 0.12)  # of the brightness, or of the contrast around a gray level of 110
BOX = np.array([[MARGIN, MARGIN, WIDTH, WIDTH]])


def accuracy(model, faces, labels):
    """Returns the share of right answers in percent."""
    return round(100 * float((model.predict(faces).argmax(axis=1) == labels).mean()), 1)


def tilt_face(face, angle):
    """Returns a gray frame with the face, uint8 (48, 48), enlarged and tilted clockwise by degrees."""
    matrix = cv2.getRotationMatrix2D((23.5, 23.5), -angle, WIDTH / 48)
    matrix[:, 2] += MARGIN + (WIDTH - 1) / 2 - 23.5
    size = (WIDTH + 2 * MARGIN,) * 2
    return cv2.warpAffine(face, matrix, size, flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)


def measure_tilt(model, faces, labels):
    """Returns the accuracy for each angle: as is, turned upright, and turned by the angle that a track would have."""
    rows = {"angles": list(ANGLES), "as is": [], "turned upright": [], "turned as by the tracker": []}
    for angle in ANGLES:
        frames = [tilt_face(face[..., 0], angle) for face in faces]
        tracked = tracking.TILT * round(angle / tracking.TILT)
        for name, turn in zip(list(rows)[1:], (0, angle, tracked), strict=True):
            crops = np.concatenate([utils.crop_faces(frame, BOX, [turn]) for frame in frames])
            rows[name].append(accuracy(model, crops, labels))
    return rows


def measure_profiles(model, faces, labels, detector):
    """Returns the accuracy for the faces that the frontal cascade finds and for those that only the profile finds."""
    kinds = np.array([classify_view(tilt_face(face[..., 0], 0), detector) for face in faces])
    found = {kind: kinds == kind for kind in ("frontal", "profile")}
    return {
        kind: {"faces": int(mask.sum()), "accuracy": accuracy(model, faces[mask], labels[mask])}
        for kind, mask in found.items()
    }


def classify_view(gray, detector):
    """Returns by which cascade the face is found."""
    if utils.search_face(gray, BOX[0], detector.frontal, tracking.KNOWN_NEIGHBORS)[0] is not None:
        return "frontal"
    sides = (
        utils.search_face(gray, BOX[0], detector.profile, utils.PROFILE_NEIGHBORS, 0, flipped, tone=None)
        for flipped in (False, True)
    )
    return "profile" if any(box is not None for box, _ in sides) else "none"


def apply_clahe(faces):
    """Contrast-limited adaptive histogram equalisation."""
    clahe = cv2.createCLAHE(2.0, (4, 4))
    return np.stack([clahe.apply(face[..., 0])[..., None] for face in faces])


def stretch(faces):
    """Moves the 2nd and the 98th percentile to 0 and 255."""
    low, high = np.percentile(faces, (2, 98), axis=(1, 2, 3), keepdims=True)
    return np.uint8(np.clip((faces - low) * 255 / np.maximum(high - low, 1), 0, 255))


def measure_equalisation(model, faces, labels):
    """Returns the accuracy for each darkening and loss of contrast, as is and after each equalisation."""
    methods = {"as is": np.copy, "CLAHE": apply_clahe, "stretch": stretch}
    shown = {f"brightness {gain}": np.uint8(faces * gain) for gain in GAINS}
    shown |= {f"contrast {gain}": np.uint8((faces - 110.0) * gain + 110) for gain in GAINS[1:]}
    return {
        name: {method: accuracy(model, apply(dim), labels) for method, apply in methods.items()}
        for name, dim in shown.items()
    }


def draw_tilt(angles, curves, path):
    """Draws accuracy over the tilt of the face, degrees clockwise; `curves` has percentages for each name."""
    figure, ax = plt.subplots(figsize=(plots.HALF_WIDTH, 4))
    for (name, accuracies), color in zip(curves.items(), plots.SERIES_COLORS, strict=True):
        ax.plot(angles, accuracies, "o-", color=color, label=name)
    ax.set(
        xlabel="Tilt of the head (degrees, clockwise)",
        ylabel="Agreement with the consensus (%)",
        title="PublicTest, tilted faces",
    )
    ax.set_xticks(angles)
    ax.legend(loc="lower center")
    plots.save(figure, path)


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=fer2013.DEFAULT_DATA)
    parser.add_argument("--votes", type=Path, default=ROOT / "data" / "fer2013new.csv")
    parser.add_argument("--model", type=Path, default=utils.DEFAULT_MODEL)
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    model = utils.load_emotion_model(args.model)
    data = fer2013.read(args.data)
    faces, _ = data.select("val", len(model.classes))
    _, _, labels = data.read_votes(args.votes).select("val", len(model.classes))
    faces, labels = faces[labels >= 0], labels[labels >= 0]
    result = {
        "model": args.model.name,
        "tflite_sha256": model.description["tflite_sha256"],
        "faces": len(faces),
        "tilt": measure_tilt(model, faces, labels),
        "views": measure_profiles(model, faces, labels, utils.load_face_detector()),
        "equalisation": measure_equalisation(model, faces, labels),
    }
    print(json.dumps(result, indent=1))
    FIGURE.write_text(json.dumps(result, indent=1) + "\n")
    tilt = result["tilt"]
    draw_tilt(tilt.pop("angles"), tilt, FIGURE.with_suffix(".png"))


if __name__ == "__main__":
    main()
