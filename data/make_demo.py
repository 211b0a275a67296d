"""Makes the bundled demo clip: one face, then two, then none, then one that tilts, turns, leaves and comes back.

    pip install scikit-image matplotlib
    python data/make_demo.py                       writes data/demo.mp4
    python data/make_demo.py --output clip.mp4     writes it elsewhere

A camera moves over two portraits that ship with those packages, both in the public domain:

    Eileen Collins   skimage.data.astronaut(), a photograph of NASA: https://flic.kr/p/r9qvLn
    Grace Hopper     matplotlib's sample_data/grace_hopper.jpg, a photograph of the United States Navy:
                     https://commons.wikimedia.org/wiki/File:Grace_Hopper.jpg

The wall they hang on is computed. The same versions of the packages write the same pictures.
"""

import argparse
import sys
from collections import namedtuple
from pathlib import Path

import cv2
import numpy as np

DEFAULT_OUTPUT = Path(__file__).resolve().parent / "demo.mp4"
WIDTH, HEIGHT, FRAMES_PER_SECOND = 640, 360, 25
SEED = 2013

# OpenCV's MPEG-4 encoder has no setting for quality. The clip stays under a megabyte because there is little to encode:
# a lens that is sharp on the face only, a plain wall without frames, and a camera that rests between its movements.
LENS_BLUR = 0.7  # Standard deviation in pixels of the frame.
NOISE = 0.5  # Standard deviation in gray levels.
MOVING = 0.6  # Share of a shot in which the camera moves. It rests before and after.

WALL_SHAPE = (1000, 2400)  # Rows, columns; frames show the wall at about half its size.
PLASTER = 4  # Standard deviation in gray levels.
WALL_COLOR = (150, 160, 158)  # BGR.
PRINT_SIZE = (480, 576)  # Width, height of a portrait on the wall.
COLLINS_CROP, HOPPER_CROP = (110, 4, 230, 276), (6, 0, 500, 600)  # x, y, width, height: both faces hang equally large.
COLLINS_CENTER, HOPPER_CENTER = (560, 500), (1130, 500)  # x, y on the wall.


# Where the camera is. x, y: the scene's pixel in the middle of the frame; tilt: degrees, clockwise; turn: degrees by
# which the wall turns away from the camera.
Pose = namedtuple("Pose", ("x", "y", "zoom", "tilt", "turn", "exposure"), defaults=(0.0, 0.0, 1.0))
FAR, NEAR = Pose(1325, 505, 0.66, 1.2, 0, 0.88), Pose(1160, 452, 0.8, -1.0, 0, 1.03)
TILTED, TURNED = NEAR._replace(tilt=-28), NEAR._replace(tilt=0, turn=48)
AWAY = NEAR._replace(x=1680, tilt=0)
SHOTS = (  # Frames, scene, the camera's first and last pose, blur of the lens.
    (45, "photograph", Pose(262, 150, 1.34, 1.0), Pose(238, 138, 1.56, -1.5), LENS_BLUR),  # Collins.
    (45, "wall", Pose(833, 492, 0.485, -0.9), Pose(853, 502, 0.525, 0.7), LENS_BLUR),  # Both.
    (20, "wall", Pose(1990, 470, 0.80, -2.0, 0, 0.95), Pose(1850, 500, 0.84, 0, 0, 0.88), 2.5),  # No face.
    (25, "wall", FAR, NEAR, LENS_BLUR),  # Hopper comes nearer.
    (25, "wall", NEAR, TILTED, LENS_BLUR),
    (25, "wall", TILTED, TURNED, LENS_BLUR),
    (35, "wall", TURNED, AWAY, LENS_BLUR),
    (35, "wall", AWAY, NEAR, LENS_BLUR),
)


def load_portraits():
    """Returns the photographs of Collins (512, 512, 3) and Hopper (600, 512, 3), uint8 BGR, soft around the faces."""
    try:
        # Only this script needs them; scikit-image is not among the project's requirements.
        from matplotlib.cbook import get_sample_data
        from skimage.data import astronaut
    except ImportError as error:
        sys.exit(f"{error.name} is missing. Run: pip install scikit-image matplotlib")
    with get_sample_data("grace_hopper.jpg") as file:
        hopper = cv2.imdecode(np.frombuffer(file.read(), np.uint8), cv2.IMREAD_COLOR)
    collins = cv2.cvtColor(astronaut(), cv2.COLOR_RGB2BGR)
    return soften_background(collins, (225, 120), 85, 3), soften_background(hopper, (267, 215), 150, 4)


def soften_background(photograph, face, radius, sigma):
    """Smooths film grain, and blurs everything beyond twice the radius from the face by `sigma`, as a lens does."""
    smooth = cv2.bilateralFilter(photograph, 9, 20, 3)
    y, x = np.ogrid[: photograph.shape[0], : photograph.shape[1]]
    distance = np.hypot(x - face[0], 0.8 * (y - face[1])) / radius
    sharp = ease(np.clip(2 - distance, 0, 1))[..., None]
    return np.uint8(np.rint(sharp * smooth + (1 - sharp) * cv2.GaussianBlur(smooth, (0, 0), sigma)))


def ease(t):
    """Maps 0..1 to 0..1 with a standstill at both ends."""
    return t * t * (3 - 2 * t)


def hang_portrait(wall, photograph, crop, center):
    """Draws a part of a photograph, and its shadow, on the wall."""
    x, y, width, height = crop
    picture = cv2.resize(photograph[y : y + height, x : x + width], PRINT_SIZE, interpolation=cv2.INTER_CUBIC)
    left, top = center[0] - PRINT_SIZE[0] // 2, center[1] - PRINT_SIZE[1] // 2
    right, bottom = left + PRINT_SIZE[0], top + PRINT_SIZE[1]
    shadow = np.zeros(wall.shape[:2], np.float32)
    shadow[top + 12 : bottom + 12, left + 10 : right + 10] = 0.4
    wall *= 1 - cv2.GaussianBlur(shadow, (0, 0), 14)[..., None]
    wall[top:bottom, left:right] = picture


def frame_matrix(pose):
    """Returns the perspective matrix, float (3, 3), from the scene's pixels to the frame's."""
    tilt, turn = np.radians(pose.tilt), np.radians(pose.turn)
    to_middle = np.array([[1, 0, -pose.x], [0, 1, -pose.y], [0, 0, 1]])
    distance = 1.5 * WIDTH / pose.zoom  # Between camera and wall, in the scene's pixels.
    turned = np.array([[np.cos(turn), 0, 0], [0, 1, 0], [np.sin(turn) / distance, 0, 1]])
    tilted = np.array([[np.cos(tilt), -np.sin(tilt), 0], [np.sin(tilt), np.cos(tilt), 0], [0, 0, 1]])
    to_frame = np.array([[pose.zoom, 0, WIDTH / 2], [0, pose.zoom, HEIGHT / 2], [0, 0, 1]])
    return to_frame @ tilted @ turned @ to_middle


def film(collins, hopper):
    """Yields the frames of the clip, uint8 (HEIGHT, WIDTH, 3) BGR."""
    random = np.random.default_rng(SEED)
    plaster = cv2.GaussianBlur(random.standard_normal(WALL_SHAPE, np.float32), (0, 0), 30)
    wall = np.float32(WALL_COLOR) + (PLASTER / plaster.std() * plaster)[..., None]  # (H, W, 3)
    hang_portrait(wall, collins, COLLINS_CROP, COLLINS_CENTER)
    hang_portrait(wall, hopper, HOPPER_CROP, HOPPER_CENTER)
    scenes = {"photograph": np.float32(collins), "wall": wall}
    for frames, scene, start, end, blur in SHOTS:
        for t in np.linspace(0, 1, frames):
            progress = ease(np.clip((t - 0.5) / MOVING + 0.5, 0, 1))
            pose = Pose(*(np.array(start) * (1 - progress) + np.array(end) * progress))
            matrix, size = frame_matrix(pose), (WIDTH, HEIGHT)
            frame = cv2.warpPerspective(scenes[scene], matrix, size, borderMode=cv2.BORDER_REPLICATE)
            frame = pose.exposure * cv2.GaussianBlur(frame, (0, 0), blur)
            frame += NOISE * random.standard_normal(frame.shape, np.float32)
            yield np.uint8(np.clip(np.rint(frame), 0, 255))


def main(argv=None):
    parser = argparse.ArgumentParser(
        usage=argparse.SUPPRESS, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT, help="clip to write (default: data/demo.mp4)")
    output, portraits = parser.parse_args(argv).output, load_portraits()
    writer = cv2.VideoWriter(str(output), cv2.VideoWriter.fourcc(*"mp4v"), FRAMES_PER_SECOND, (WIDTH, HEIGHT))
    if not writer.isOpened():
        sys.exit(f"{output}: cannot be written. Choose another --output that ends in .mp4.")
    for frame in film(*portraits):
        writer.write(frame)
    writer.release()
    print(f"{output}: {output.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
