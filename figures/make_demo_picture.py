"""Makes figures/demo.jpg, three moments of the bundled clip as the demo labels them, and figures/timeline.png, its log.

python figures/make_demo_picture.py
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
MOMENTS = (2.0, 4.5, 9.5)  # Seconds: Collins, both, Hopper.
WIDTH = 480  # Pixels of each frame.


def label_clip(video, log):
    """Runs the demo on the bundled clip, as a user does; it draws the timeline next to the log."""
    command = [sys.executable, ROOT / "webcam_demo.py", ROOT / "data" / "demo.mp4", "--no-display"]
    subprocess.run([*command, "--output", video, "--log", log], check=True)


def read_moment(path, seconds):
    """Returns the frame of a video at a time, uint8 (H, WIDTH, 3)."""
    capture = cv2.VideoCapture(str(path))
    capture.set(cv2.CAP_PROP_POS_MSEC, seconds * 1000)
    _, frame = capture.read()
    return cv2.resize(frame, (WIDTH, WIDTH * frame.shape[0] // frame.shape[1]), interpolation=cv2.INTER_AREA)


def main():
    with tempfile.TemporaryDirectory() as folder:
        video, log = Path(folder) / "labelled.mp4", Path(folder) / "log.csv"
        label_clip(video, log)
        shutil.copy(log.with_name("log-timeline.png"), ROOT / "figures" / "timeline.png")
        frames = [read_moment(video, seconds) for seconds in MOMENTS]
    cv2.imwrite(str(ROOT / "figures" / "demo.jpg"), np.hstack(frames), [cv2.IMWRITE_JPEG_QUALITY, 88])


if __name__ == "__main__":
    main()
