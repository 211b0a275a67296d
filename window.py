"""The demo's window: its keys, what they switch, and what is written over the picture; used by webcam_demo.py."""

import contextlib
import datetime
import os
import subprocess
import sys
import time

import cv2
import numpy as np

import utils
from results import OUTPUT_DIR, write_image
from sources import is_still

WINDOW = "Emotions"
HELP = ["q, Esc  quit", "space   pause", "s  snapshot", "m  mirror", "b  probabilities", "f  frame rate", "h  help"]
LARGEST = (1280, 720)  # Pixels of a new window; whoever wants more drags its edge.
SECONDS_PER_IMAGE = 1.0  # Of a folder's images; a single one stays until a key ends it.


class Window:
    """The window, its keys and what they switch."""

    def __init__(self, mirrored):
        self.mirrored, self.paused, self.closed, self.frame = mirrored, False, False, None
        self.overlays = {"f"}  # The keys of those that are on: b, f, h.
        self.name, self.clock = None, 0.0  # The video's, and what the clock showed at its second 0, pauses taken off.
        cv2.namedWindow(WINDOW, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO)

    def show(self, frame, source, time_s, name):
        """Shows a frame, a file's not before its time, and obeys the keys."""
        if self.frame is None:
            cv2.resizeWindow(WINDOW, *window_size(*frame.shape[1::-1]))
        self.draw(frame)
        now = time.perf_counter()
        if source.live:
            self.wait(0)
        elif is_still(source, name):
            self.wait(SECONDS_PER_IMAGE if source.many else np.inf)
        else:
            if name != self.name:  # A video begins.
                self.name, self.clock = name, now - time_s
            self.wait(time_s + self.clock - now)

    def describe(self, boxes, probabilities, classes, fps, latency):
        """Takes what the overlays of the next frame say; `latency` is in seconds, None for files."""
        self.rate = f"{fps:.0f} frames/s" + (f", {1000 * latency:.0f} ms behind" if latency is not None else "")
        nearest = int(np.argmax(boxes[:, 2])) if len(boxes) else None
        self.nearest = None if nearest is None else (probabilities[nearest], classes)

    def draw(self, frame):
        """Shows a frame with the overlays that the keys have switched on."""
        self.plain, self.frame = frame, frame.copy()
        put_notes(self.frame, [self.rate] * ("f" in self.overlays) + HELP * ("h" in self.overlays))
        if "b" in self.overlays and self.nearest:
            put_bars(self.frame, *self.nearest)
        cv2.imshow(WINDOW, self.frame)

    def stall(self, name):
        """Says on the last frame that a live source gives no more."""
        if self.frame is not None:
            frame = self.frame.copy()
            put_notes(frame, [f"No picture from {name}; trying to open it again."])
            cv2.imshow(WINDOW, frame)
        self.wait(0)

    def wait(self, seconds):
        """Obeys the keys, at least once and until the time is over; a pause does not count."""
        while True:
            before = time.perf_counter()
            self.press(cv2.waitKey(int(np.clip(seconds * 1000, 1, 20))) & 0xFF)
            self.closed = self.closed or not is_visible(WINDOW)
            elapsed = time.perf_counter() - before
            if not self.paused:
                seconds -= elapsed
            else:
                self.clock += elapsed
            if self.closed or seconds <= 0 and not self.paused:
                return

    def press(self, key):
        if key in (ord("q"), 27):  # 27 is Esc.
            self.closed = True
        elif key == ord(" "):
            self.paused = not self.paused
        elif key == ord("m"):
            self.mirrored = not self.mirrored
        elif chr(key) in "bfh" and self.frame is not None:
            self.overlays ^= {chr(key)}
            self.draw(self.plain)  # At once, also while the picture stands still.
        elif key == ord("s") and self.frame is not None:
            path = OUTPUT_DIR / f"snapshot-{datetime.datetime.now():%Y%m%d-%H%M%S-%f}.png"
            with contextlib.suppress(OSError):  # Then the image cannot be written either, which is told.
                OUTPUT_DIR.mkdir(exist_ok=True)
            print(f"Saved {path}." if write_image(path, self.frame) else f"Cannot write {path}.", flush=True)

    def close(self):
        cv2.destroyAllWindows()


def is_visible(window):
    """Tells whether a window has not been closed."""
    try:
        return cv2.getWindowProperty(window, cv2.WND_PROP_VISIBLE) >= 1
    except cv2.error:  # With Qt, closing the last window takes away whom to ask.
        return False


def has_display():
    """Tells whether a window can open: on Linux without a display OpenCV would not raise but abort the process.

    So another process tries it, because a display that the environment names need not be there.
    """
    if not sys.platform.startswith("linux"):
        return True
    if not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return False
    probe = [sys.executable, "-c", "import cv2; cv2.namedWindow('probe'); cv2.destroyAllWindows()"]
    tried = subprocess.run(probe, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    return tried.returncode >= 0  # Less: a signal ended it. What raises can raise again, with its reason.


def window_size(width, height):
    """Returns the size in pixels of the window for a frame of this size."""
    scale = min(1.0, LARGEST[0] / width, LARGEST[1] / height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def put_notes(frame, lines):
    """Writes lines of text into the upper left corner of a frame."""
    scale, bottom = utils.text_scale(frame), 0
    for line in lines:
        bottom = utils.put_text(frame, line, (0, bottom and bottom + round(36 * scale)), scale * 0.8, (40, 40, 40))


def put_bars(frame, probabilities, classes):
    """Draws one face's probabilities, float (C,), as bars into the lower left corner of a frame."""
    scale = utils.text_scale(frame)
    row, length = round(30 * scale), round(240 * scale)
    for line, (probability, name) in enumerate(zip(probabilities, classes, strict=True)):
        bottom = frame.shape[0] - (len(classes) - 1 - line) * row
        frame[bottom - row : bottom, :length] = frame[bottom - row : bottom, :length] // 3
        end = (max(1, int(length * probability)), bottom - round(4 * scale))
        cv2.rectangle(frame, (0, bottom - row + round(4 * scale)), end, utils.EMOTION_COLORS[name][::-1], cv2.FILLED)
        origin, size = (round(8 * scale), bottom - round(9 * scale)), 0.6 * scale
        text = f"{name} {probability:.0%}"
        cv2.putText(
            frame, text, origin, cv2.FONT_HERSHEY_SIMPLEX, size, (0, 0, 0), max(2, round(4 * scale)), cv2.LINE_AA
        )
        cv2.putText(
            frame, text, origin, cv2.FONT_HERSHEY_SIMPLEX, size, (255, 255, 255), max(1, round(scale)), cv2.LINE_AA
        )
