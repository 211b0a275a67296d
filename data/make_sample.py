"""Draws schematic faces of the seven emotions and writes them as a CSV in FER2013's format.

    python data/make_sample.py                          writes data/sample.csv, in a few seconds
    python data/make_sample.py --output /tmp/faces.csv  writes it elsewhere
    python data/make_sample.py --faces-per-class 20     a smaller one
    python data/make_sample.py --seed 1                 other faces

With it, training and evaluation can be tried where FER2013 has not been downloaded. It shows the pipeline, not faces: a
model trained on it reads these drawings and no person, and its accuracy says nothing about FER2013.
"""

import argparse
import sys
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # utils.py is in the folder above.
import utils

# ---------------------------------------------------------------------------------------------------------------------
# The drawings: lengths in pixels of the 48x48 picture, x to the right and y down from its middle, brightness 0..255
# ---------------------------------------------------------------------------------------------------------------------

SUPERSAMPLING = 4  # Canvas pixels per picture pixel: averaged down, thin strokes keep their place.
CANVAS_SIZE = 64  # The picture's 48 and what tilting, shifting and shrinking bring into it.
SHARE_HELD_OUT = 0.25  # Rows of PublicTest and of PrivateTest, as a share of Training's.
MAX_FACES_PER_CLASS = 10_000  # Three times FER2013's rows, 900 MB and some minutes: more is a slip of the finger.

# What makes the emotion, after the action units of Ekman & Friesen (1978): each face draws its values from the ranges.
#   brow_angle     degrees, positive where the inner ends are low     mouth_curve    by how much the corners are higher
#   brow_lift      of the brow from its resting place                 mouth_opening  height of the gap between the lips
#   brow_arch      of the brow's middle over its ends                 mouth_width    from corner to corner
#   eye_opening    from lid to lid                                    teeth          share of the gap that they fill
#   nose_wrinkle   darkness of the folds, 0..1                        tongue         length hanging over the lower lip
# fmt: off
FEATURES = ("brow_angle", "brow_lift", "brow_arch", "eye_opening", "nose_wrinkle",
            "mouth_curve", "mouth_opening", "mouth_width", "teeth", "tongue")
EXPRESSIONS = {
    "Angry":    ((22, 34), (-2.4, -1.2), (0, .5), (2.4, 3.6), (0, .3), (-2.5, -1), (0, 4), (10, 15), (.8, 1), (0, 0)),
    "Disgust":  ((8, 18), (-1.8, -.6), (0, .8), (1.2, 2.2), (.8, 1), (-3.5, -2), (3, 5), (11, 15), (0, .2), (4, 6)),
    "Fear":     ((-26, -14), (1, 2.4), (0, .5), (6, 7.4), (0, .2), (-3, -1.2), (4, 6.5), (14, 18), (.8, 1), (0, 0)),
    "Happy":    ((-6, 4), (0, 1), (.8, 1.6), (2.2, 4), (0, .1), (3, 5), (0, 7), (15, 20), (.4, .6), (0, 0)),
    "Sad":      ((-32, -20), (-.4, .8), (0, .4), (2.2, 3.6), (0, .1), (-4.5, -2.5), (0, 0), (9, 14), (0, 0), (0, 0)),
    "Surprise": ((-5, 5), (2, 3.6), (1.2, 2.4), (6, 7.8), (0, .1), (-.5, .5), (7, 11), (6, 9), (0, .2), (0, 0)),
    "Neutral":  ((-4, 6), (-.6, .6), (.2, .9), (3.6, 4.8), (0, .1), (-.4, .6), (0, 0), (10, 14), (0, 0), (0, 0)),
}
# fmt: on

# What makes the person, in the same ranges for every emotion.
PERSON = {
    "skin": (120, 225),
    "hair": (10, 110),
    "background": (20, 235),
    "face_width": (30, 38),
    "face_height": (41, 50),
    "jaw": (0.0, 0.3),  # Share by which the face is narrower at the chin.
    "hairline": (-19, -15),
    "eye_distance": (14, 17),
    "gaze": (-0.8, 0.8),
    "brow_thickness": (1.0, 2.0),
    "nose_length": (7, 10),
    "mouth_y": (11.5, 13.5),
}

# What makes the photograph: mild enough for a hundred and some faces of each emotion to teach a CNN.
MAX_TILT = 7  # Degrees.
MAX_SHIFT = 1.5
SCALE = (0.96, 1.14)
MAX_SHADOW = 0.35  # Share of the light that is missing at the dark edge.
BLUR = (0.2, 0.6)  # Standard deviation in pixels.
NOISE = (1, 5)  # Standard deviation in levels of brightness.

# ---------------------------------------------------------------------------------------------------------------------
# Drawing
# ---------------------------------------------------------------------------------------------------------------------


def stroke(canvas, x, y, brightness, width=None):
    """Draws the line through points x, y, arrays (P,), of a width in pixels; without a width fills their outline."""
    points = np.rint((np.column_stack([x, y]) + CANVAS_SIZE / 2) * SUPERSAMPLING).astype(np.int32)
    if width is None:
        cv2.fillPoly(canvas, [points], brightness)
    else:
        cv2.polylines(canvas, [points], False, brightness, round(width * SUPERSAMPLING))


def ellipse(x, y, width, height):
    """Returns the outline around (x, y) as two arrays (40,)."""
    angle = np.linspace(0, 2 * np.pi, 40)
    return x + width / 2 * np.cos(angle), y + height / 2 * np.sin(angle)


def draw_head(canvas, person):
    """Draws the hair, the ears and the face up to the hairline."""
    width, height, skin = person["face_width"], person["face_height"], person["skin"]
    stroke(canvas, *ellipse(0, -2, width * 1.12, height * 1.08), person["hair"])
    for side in (-1, 1):
        stroke(canvas, *ellipse(side * width / 2, 0, 5, 9), skin * 0.85)
    x, y = ellipse(0, 0, width, height)
    x *= 1 - person["jaw"] * np.maximum(y / height * 2, 0)
    stroke(canvas, x, np.maximum(y, person["hairline"] + 0.02 * x**2), skin)


def draw_eye(canvas, side, person, expression):
    """Draws the brow and the eye of one side, -1 or 1; `t` runs from the inner corner, -1, to the outer, 1."""
    t, skin, eye_y = np.linspace(-1, 1, 25), person["skin"], -3
    slope, middle = np.tan(np.deg2rad(expression["brow_angle"])), side * person["eye_distance"] / 2
    x, lid = middle + side * 3.8 * t, expression["eye_opening"] / 2 * np.sqrt(1 - t**2)
    lower, upper = eye_y + lid, eye_y - lid - slope * t  # The upper lid leans with the brow.
    inside, eyeball = np.zeros_like(canvas), np.full_like(canvas, min(255, skin + 70))
    stroke(inside, np.append(x, x[::-1]), np.append(lower, np.minimum(upper, lower)[::-1]), 255)
    stroke(eyeball, *ellipse(middle + person["gaze"], eye_y, 3.8, 3.8), 15)
    np.copyto(canvas, eyeball, where=inside > 0)
    stroke(canvas, x, upper, skin * 0.3, 0.8)
    stroke(canvas, x, lower, skin * 0.6, 0.4)
    brow = eye_y - 5.5 - expression["brow_lift"] - expression["brow_arch"] * (1 - t**2) - slope * 4.4 * t
    stroke(canvas, x * 1.05, brow, min(person["hair"], skin * 0.5), person["brow_thickness"])


def draw_nose(canvas, person, expression):
    """Draws the nose, and the folds of a wrinkled one: on its bridge and from the nostrils down around the mouth."""
    t, skin, tip = np.linspace(-1, 1, 15), person["skin"], person["nose_length"] - 3
    stroke(canvas, 2.6 * t, tip - 1.2 * t**2, skin * 0.55, 0.7)
    stroke(canvas, 1.2 - 0.6 * t, (tip - 4 + tip * t) / 2, skin * 0.82, 0.6)
    fold = skin * (1 - 0.55 * expression["nose_wrinkle"])
    for y in (-4.5, -2.8, -1.1):
        stroke(canvas, 2 * t, y + np.abs(t), fold, 0.6)
    for side in (-1, 1):
        stroke(canvas, side * (6 + 2.5 * t - t**2), tip + 1.5 + 3.5 * t, fold, 0.7)


def draw_mouth(canvas, person, expression):
    """Draws the gap between the lips, the teeth and the tongue in it, and the lips as its edges."""
    t, skin = np.linspace(-1, 1, 31), person["skin"]
    x, gap = t * expression["mouth_width"] / 2, expression["mouth_opening"] * (1 - t**2) ** 0.6
    upper = person["mouth_y"] + expression["mouth_curve"] * (0.5 - t**2) - 0.4 * gap
    for depth, brightness in ((gap, skin * 0.15), (gap * expression["teeth"], min(255, skin + 80))):
        stroke(canvas, np.append(x, x[::-1]), np.append(upper, (upper + depth)[::-1]), brightness)
    stroke(canvas, x, upper, skin * 0.4, 1.1)
    stroke(canvas, x, upper + gap, skin * 0.4, 0.9)
    if expression["tongue"]:
        length = expression["tongue"] + 2  # It begins inside the mouth.
        outline = ellipse(0, person["mouth_y"] + (expression["mouth_opening"] + length) / 2, 6, length)
        stroke(canvas, *outline, skin * 0.75)
        stroke(canvas, *outline, skin * 0.4, 0.5)


def photograph(canvas, rng):
    """Returns the picture, uint8 (48, 48), of a canvas: tilted, shifted, scaled, lit from one side, blurred, noisy."""
    size, middle = utils.IMAGE_SIZE, len(canvas) / 2
    matrix = cv2.getRotationMatrix2D((middle, middle), rng.uniform(-MAX_TILT, MAX_TILT), rng.uniform(*SCALE))
    matrix[:, 2] += (rng.uniform(-MAX_SHIFT, MAX_SHIFT, 2) + (size - CANVAS_SIZE) / 2) * SUPERSAMPLING
    canvas = cv2.warpAffine(canvas, matrix, (size * SUPERSAMPLING,) * 2, borderMode=cv2.BORDER_REPLICATE)
    picture = cv2.resize(canvas, (size, size), interpolation=cv2.INTER_AREA).astype(np.float32)
    y, x = np.mgrid[-0.5 : 0.5 : size * 1j, -0.5 : 0.5 : size * 1j]
    angle = rng.uniform(0, 2 * np.pi)
    picture *= 1 - rng.uniform(0, MAX_SHADOW) * (0.5 + (x * np.cos(angle) + y * np.sin(angle)) / np.sqrt(2))
    picture = cv2.GaussianBlur(picture, (0, 0), rng.uniform(*BLUR))
    picture += rng.normal(0, rng.uniform(*NOISE), picture.shape)
    return np.rint(picture).clip(0, 255).astype(np.uint8)


def draw_face(emotion, rng):
    """Returns a face, uint8 (48, 48), of an emotion by name."""
    person = {name: rng.uniform(*bounds) for name, bounds in PERSON.items()}
    expression = {name: rng.uniform(*bounds) for name, bounds in zip(FEATURES, EXPRESSIONS[emotion], strict=True)}
    canvas = np.full((CANVAS_SIZE * SUPERSAMPLING,) * 2, person["background"], np.uint8)
    draw_head(canvas, person)
    draw_nose(canvas, person, expression)
    for side in (-1, 1):
        draw_eye(canvas, side, person, expression)
    draw_mouth(canvas, person, expression)
    return photograph(canvas, rng)


# ---------------------------------------------------------------------------------------------------------------------
# The CSV
# ---------------------------------------------------------------------------------------------------------------------


def plan_rows(faces_per_class, rng):
    """Returns the emotion id and the usage of every row, shuffled: a list of (int, str)."""
    held_out = max(1, round(faces_per_class * SHARE_HELD_OUT))
    counts = {"Training": faces_per_class, "PublicTest": held_out, "PrivateTest": held_out}
    rows = [(i, usage) for i in range(len(utils.EMOTIONS)) for usage, count in counts.items() for _ in range(count)]
    return [rows[position] for position in rng.permutation(len(rows))]


def make_sample(output, faces_per_class, seed):
    """Writes the CSV, so that `output` holds the old content or the new at every moment.

    Args:
        output: path of the CSV; its folder is made where there is none.
        faces_per_class: Training rows of each emotion; PublicTest and PrivateTest have a quarter of it each.
        seed: the same seed gives the same file, byte for byte.

    Returns:
        rows: number of faces written.

    Raises:
        OSError: the file cannot be written.
    """
    rng = np.random.default_rng(seed)
    rows = plan_rows(faces_per_class, rng)
    output.parent.mkdir(parents=True, exist_ok=True)
    with utils.replaced_file(output) as new, open(new, "w", encoding="utf-8", newline="\n") as file:
        file.write(",".join(utils.COLUMNS) + "\n")
        for emotion, usage in rows:
            face = draw_face(utils.EMOTIONS[emotion], rng)
            file.write(f"{emotion},{' '.join(map(str, face.ravel().tolist()))},{usage}\n")
    return len(rows)


def whole_number(text, minimum=0, maximum=2**32 - 1):
    if not (text.isdecimal() and len(text) <= 10 and minimum <= int(text) <= maximum):
        raise argparse.ArgumentTypeError(f"must be a whole number from {minimum} to {maximum}. Received: {text}.")
    return int(text)


def csv_path(text):
    path = Path(text)
    if path.suffix.lower() != ".csv" or path.is_dir():
        raise argparse.ArgumentTypeError(f"must be a file whose name ends in .csv. Received: {text}.")
    return path


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        usage=argparse.SUPPRESS, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = utils.ROOT / "data" / "sample.csv"
    parser.add_argument("--output", type=csv_path, default=default, help="CSV to write (default: data/sample.csv)")
    parser.add_argument(
        "--faces-per-class",
        type=lambda text: whole_number(text, 1, MAX_FACES_PER_CLASS),
        default=160,
        help="Training rows of each emotion (default: 160)",
    )
    parser.add_argument("--seed", type=whole_number, default=0, help="of everything random (default: 0)")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    utils.make_any_name_printable()
    try:
        rows = make_sample(args.output, args.faces_per_class, args.seed)
    except OSError as error:
        print(f"make_sample.py: --output must be a file that can be written. Received: {error}.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    path = args.output.resolve()
    path = path.relative_to(utils.ROOT) if path.is_relative_to(utils.ROOT) else path
    print(
        f"Wrote {rows} drawn faces of {len(utils.EMOTIONS)} emotions to {path}.\n"
        f"Next: python train.py --data {path} --output-dir models/sample --epochs 7 --batch-size 32"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
