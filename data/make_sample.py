"""Draws schematic faces of the seven emotions and writes them in FER2013's format, with votes in FER+'s format.

    python data/make_sample.py                          writes data/sample.csv and data/sample_votes.csv
    python data/make_sample.py --output /tmp/faces.csv  writes /tmp/faces.csv and /tmp/faces_votes.csv
    python data/make_sample.py --faces-per-class 20     fewer faces
    python data/make_sample.py --seed 1                 other faces

The sample shows how training and evaluation work without FER2013. A model trained on it knows these drawings only. Its
accuracy says nothing about real faces.
"""

import argparse
import os
import sys
from pathlib import Path

import cv2
import numpy as np

IMAGE_SIZE = 48  # Pixels, width and height of a face.
SUPERSAMPLING = 4  # Canvas pixels per image pixel: averaged down, thin lines keep their place.
HELD_OUT = 0.25  # Rows of PublicTest and of PrivateTest, as a share of Training's.
MAX_FACES_PER_CLASS = 5000  # 52,500 rows, 440 MB.

# Ranges of the features of each emotion, after the action units of Ekman & Friesen (1978). Lengths are in image pixels.
#   brow angle     degrees, positive where the inner ends are low     mouth curve    height of the corners
#   brow lift      above the resting place                            mouth opening  height of the gap between the lips
#   eye opening    from lid to lid                                    mouth width    from corner to corner
# The order is that of FER2013's emotion ids.
EXPRESSIONS = {
    "Angry": ((22, 34), (-2.4, -1.2), (2.4, 3.6), (-2.5, -1), (0, 4), (10, 15)),
    "Disgust": ((8, 18), (-1.8, -0.6), (1.2, 2.2), (-4.5, -3), (3, 5), (11, 15)),
    "Fear": ((-26, -14), (1, 2.4), (6, 7.4), (-3, -1.2), (4, 6.5), (14, 18)),
    "Happy": ((-6, 4), (0, 1), (2.2, 4), (3, 5), (0, 7), (15, 20)),
    "Sad": ((-32, -20), (-0.4, 0.8), (2.2, 3.6), (-4.5, -2.5), (0, 0), (9, 14)),
    "Surprise": ((-5, 5), (2, 3.6), (6, 7.8), (-0.5, 0.5), (7, 11), (6, 9)),
    "Neutral": ((-4, 6), (-0.6, 0.6), (3.6, 4.8), (-0.4, 0.6), (0, 0), (10, 14)),
}
VOTE_COLUMNS = ("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt", "unknown", "NF")
EMOTION_COLUMNS = (4, 5, 6, 1, 3, 2, 0)  # The position of each emotion's column, in the order of EXPRESSIONS.
RATERS = 10

MAX_TILT = 7  # Degrees.
MAX_SHIFT = 1.5  # Pixels.
SCALE = (1.0, 1.16)
MAX_SHADOW = 0.35  # Share of the light that is missing at the dark edge.
NOISE = (1, 5)  # Standard deviation in gray levels.

# Coordinates below: x to the right and y down from the center of the image, in pixels. Brightness: 0..255.


def draw_line(canvas, x, y, brightness, width=None):
    """Draws a line through points x, y, arrays (P,), of a width in pixels. Without a width, fills their outline."""
    points = np.rint(np.column_stack([x, y]) * SUPERSAMPLING + canvas.shape[0] / 2).astype(np.int32)
    if width is None:
        cv2.fillPoly(canvas, [points], brightness)
    else:
        cv2.polylines(canvas, [points], False, brightness, round(width * SUPERSAMPLING))


def ellipse(x, y, width, height):
    """Returns the outline of an ellipse around (x, y) as two arrays (40,)."""
    angle = np.linspace(0, 2 * np.pi, 40)
    return x + width / 2 * np.cos(angle), y + height / 2 * np.sin(angle)


def draw_eye(canvas, side, skin, angle, lift, opening):
    """Draws the brow and the eye of one side, -1 or 1; `t` is -1 at the inner corner, 1 at the outer."""
    t = np.linspace(-1, 1, 25)
    x, lid, slope = side * (7.75 + 3.8 * t), opening / 2 * np.sqrt(1 - t**2), np.tan(np.deg2rad(angle))
    draw_line(canvas, np.append(x, x[::-1]), np.append(-3 - lid, (-3 + lid)[::-1]), min(255, skin + 60))
    draw_line(canvas, *ellipse(side * 7.75, -3, 3.4, min(opening, 3.4)), 15)
    draw_line(canvas, x, -3 - lid, skin * 0.3, 0.8)
    draw_line(canvas, x * 1.05, -8.5 - lift - slope * 4.4 * t, skin * 0.3, 1.5)


def draw_mouth(canvas, skin, curve, opening, width):
    """Draws the lips and the gap between them."""
    t = np.linspace(-1, 1, 31)
    x, gap = t * width / 2, opening * (1 - t**2) ** 0.6
    upper = 12.5 + curve * (0.5 - t**2) - 0.4 * gap
    draw_line(canvas, np.append(x, x[::-1]), np.append(upper, (upper + gap)[::-1]), skin * 0.15)
    draw_line(canvas, x, upper, skin * 0.4, 1.1)
    draw_line(canvas, x, upper + gap, skin * 0.4, 0.9)


def draw_face(emotion, rng):
    """Returns a face, uint8 (48, 48), of an emotion by name."""
    angle, lift, opening, *mouth = (rng.uniform(*bounds) for bounds in EXPRESSIONS[emotion])
    skin, hair, background = rng.uniform(120, 225), rng.uniform(10, 130), rng.uniform(20, 200)
    width, height = rng.uniform(30, 38), rng.uniform(41, 50)
    canvas = np.full((IMAGE_SIZE * SUPERSAMPLING,) * 2, background, np.uint8)
    draw_line(canvas, *ellipse(0, -2, width * 1.12, height * 1.08), hair)
    x, y = ellipse(0, 0, width, height)
    draw_line(canvas, x, np.maximum(y, rng.uniform(-22, -17) + 0.02 * x**2), skin)
    t = np.linspace(-1, 1, 15)
    draw_line(canvas, 2.6 * t, 6 - 1.2 * t**2, skin * 0.55, 0.7)  # Nose.
    for side in (-1, 1):
        draw_eye(canvas, side, skin, angle, lift, opening)
    draw_mouth(canvas, skin, *mouth)
    return photograph(canvas, rng)


def photograph(canvas, rng):
    """Returns the image, uint8 (48, 48), of a canvas: tilted, shifted, scaled, lit from one side, noisy."""
    center = len(canvas) / 2
    matrix = cv2.getRotationMatrix2D((center, center), rng.uniform(-MAX_TILT, MAX_TILT), rng.uniform(*SCALE))
    matrix[:, 2] += rng.uniform(-MAX_SHIFT, MAX_SHIFT, 2) * SUPERSAMPLING
    canvas = cv2.warpAffine(canvas, matrix, canvas.shape, borderMode=cv2.BORDER_REPLICATE)
    image = cv2.resize(canvas, (IMAGE_SIZE, IMAGE_SIZE), interpolation=cv2.INTER_AREA).astype(np.float32)
    y, x = np.mgrid[-0.5 : 0.5 : IMAGE_SIZE * 1j, -0.5 : 0.5 : IMAGE_SIZE * 1j]
    angle = rng.uniform(0, 2 * np.pi)
    image *= 1 - rng.uniform(0, MAX_SHADOW) * (0.5 + (x * np.cos(angle) + y * np.sin(angle)) / np.sqrt(2))
    image += rng.normal(0, rng.uniform(*NOISE), image.shape)
    return np.rint(image).clip(0, 255).astype(np.uint8)


def make_rows(faces_per_class, seed):
    """Yields the line of the data set and the line of the votes for every face, sorted by split as in FER2013.

    Raters name the drawn emotion with a probability of at least 0.4.
    """
    rng = np.random.default_rng(seed)
    held_out = max(1, round(faces_per_class * HELD_OUT))
    yield "emotion,pixels,Usage\n", f"Usage,Image name,{','.join(VOTE_COLUMNS)}\n"
    for usage, count in (("Training", faces_per_class), ("PublicTest", held_out), ("PrivateTest", held_out)):
        for emotion in rng.permutation(np.repeat(np.arange(len(EXPRESSIONS)), count)).tolist():
            pixels = draw_face(list(EXPRESSIONS)[emotion], rng).ravel().tolist()
            certainty = rng.uniform(0.4, 1)
            chances = np.full(len(VOTE_COLUMNS), (1 - certainty) / len(VOTE_COLUMNS))
            chances[EMOTION_COLUMNS[emotion]] += certainty
            votes = rng.multinomial(RATERS, chances).tolist()
            yield f"{emotion},{' '.join(map(str, pixels))},{usage}\n", f"{usage},,{','.join(map(str, votes))}\n"


def make_sample(output, faces_per_class, seed):
    """Writes the data set and, next to it, its votes; returns the path of the votes. A seed gives the same bytes."""
    votes = output.with_name(f"{output.stem}_votes.csv")
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = [path.with_name(f".new-{os.getpid()}-{path.name}") for path in (output, votes)]
    try:
        with open(partial[0], "w", newline="\n") as faces_file, open(partial[1], "w", newline="\n") as votes_file:
            for face_line, votes_line in make_rows(faces_per_class, seed):
                faces_file.write(face_line)
                votes_file.write(votes_line)
        partial[0].replace(output)
        partial[1].replace(votes)
    finally:
        for path in partial:
            path.unlink(missing_ok=True)
    return votes


def csv_path(text):
    if not text.lower().endswith(".csv") or Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"must be a file whose name ends in .csv, but is {text!r}.")
    return Path(text)


def main(argv=None):
    parser = argparse.ArgumentParser(
        usage=argparse.SUPPRESS, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = Path(__file__).resolve().with_name("sample.csv")
    parser.add_argument("--output", type=csv_path, default=default, help="CSV to write (default: data/sample.csv)")
    parser.add_argument("--faces-per-class", type=int, default=160, help="Training rows of each emotion (default: 160)")
    parser.add_argument("--seed", type=int, default=0, help="random seed (default: 0)")
    args = parser.parse_args(argv)
    if not 1 <= args.faces_per_class <= MAX_FACES_PER_CLASS or args.seed < 0:
        parser.error(f"--faces-per-class must be 1 to {MAX_FACES_PER_CLASS}, and --seed at least 0.")
    try:
        votes = make_sample(args.output, args.faces_per_class, args.seed)
    except OSError as error:
        print(f"make_sample.py: {args.output}: {error.strerror}. Choose another --output.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("make_sample.py: stopped.", file=sys.stderr)
        return 130
    print(f"Wrote {args.output} and {votes}. Next:")
    print(f"python train.py --data {args.output} --votes {votes} --output-dir models/sample --epochs 7 --batch-size 32")
    return 0


if __name__ == "__main__":
    sys.exit(main())
