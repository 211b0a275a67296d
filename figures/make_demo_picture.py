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
MOMENTS = (0.4, 2.4, 6.0)  # Seconds: Collins, both, Hopper with her head tilted.
SIZE = (480, 270)  # Pixels of each frame.


def main():
    with tempfile.TemporaryDirectory() as folder:
        video, log = Path(folder) / "labelled.mp4", Path(folder) / "log.csv"
        command = [sys.executable, ROOT / "webcam_demo.py", ROOT / "data" / "demo.mp4", "--no-display"]
        subprocess.run([*command, "--output", video, "--log", log], check=True)
        shutil.copy(log.with_name("log-timeline.png"), ROOT / "figures" / "timeline.png")
        capture, frames = cv2.VideoCapture(str(video)), []
        for seconds in MOMENTS:
            capture.set(cv2.CAP_PROP_POS_MSEC, seconds * 1000)
            frames.append(cv2.resize(capture.read()[1], SIZE, interpolation=cv2.INTER_AREA))
        capture.release()  # Windows does not remove a file that is open.
    cv2.imwrite(str(ROOT / "figures" / "demo.jpg"), np.hstack(frames), [cv2.IMWRITE_JPEG_QUALITY, 88])


if __name__ == "__main__":
    main()
