"""The demo's window: its keys, what they switch, and the text over the image."""

import datetime
import functools
import os
import subprocess
import sys
import time

import cv2
import numpy as np

import utils
from video import OUTPUT_DIR, write_image

WINDOW = "Emotions"
FLAGS = cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO | cv2.WINDOW_GUI_NORMAL  # GUI_NORMAL: without Qt's toolbar.
HINT = "h: help, q: quit"
HELP = ["q, Esc  quit", "space   pause", "s  snapshot", "m  mirror", "b  probabilities", "f  frame rate", "h  help"]
ESCAPE = 27
LARGEST = (1280, 720)  # Pixels of a new window. Its edges can be dragged.
HINT_SECONDS = 5.0
SECONDS_PER_IMAGE = 1.0  # For the images of a folder. A single one stays until a key ends it.
NOTE_COLOR = (40, 40, 40)  # BGR.


class Window:
    """The window for a source. Its keys set `mirrored`, for the next frame, and `closed`, to end the demo."""

    def __init__(self, source):
        self.source = source
        self.mirrored, self.paused, self.closed = source.kind == "camera", False, False
        self.overlays = {"f"}  # Keys of the overlays that are on: b, f, h.
        self.draw = self.shown = None  # Draws the current frame again; the image that the window shows.
        self.file, self.clock = None, 0.0  # The current video, and when it started, moved on by the pauses.
        self.hint_end = time.perf_counter() + HINT_SECONDS
        cv2.namedWindow(WINDOW, FLAGS)

    def show(self, annotated, source_frame, faces, fps):
        """Shows a frame, uint8 (H, W, 3), with its list of `utils.Face` until the next is due. Handles the keys."""
        if self.draw is None:
            cv2.resizeWindow(WINDOW, *window_size(*annotated.shape[1::-1]))
        now, time_s, rate = time.perf_counter(), source_frame.time_s, f"{fps:.0f} frames/s"
        if self.source.kind in ("camera", "stream"):
            due = now
            rate += f", {1000 * (now - self.source.started - time_s):.0f} ms behind"
        elif source_frame.still:
            due = now + (SECONDS_PER_IMAGE if self.source.kind == "folder" else np.inf)
            rate = None
        else:
            if source_frame.file != self.file:
                self.file, self.clock = source_frame.file, now - time_s
            due = self.clock + time_s
        self.draw = functools.partial(self._draw, annotated, faces, rate)
        self.draw()
        self._wait(due)

    def stall(self):
        """Shows on the last frame that the live source is not sending."""
        if self.draw:
            self.draw(message=f"No picture from {self.source.title}; trying to open it again.")
        self._wait(0.0)

    def close(self):
        cv2.destroyAllWindows()

    def _draw(self, annotated, faces, rate, message=None):
        self.shown = annotated.copy()
        lines = [message] if message else []
        if time.perf_counter() < self.hint_end and "h" not in self.overlays:
            lines.append(HINT)
        if rate and "f" in self.overlays:
            lines.append(rate)
        if "h" in self.overlays:
            lines += HELP
        put_notes(self.shown, lines)
        if faces and "b" in self.overlays:
            nearest = max(faces, key=lambda face: face.box[2])  # The widest box.
            put_bars(self.shown, nearest.probabilities)
        cv2.imshow(WINDOW, self.shown)

    def _wait(self, due):
        """Handles the keys, at least once, until the time `due`. A pause postpones it."""
        while not self.closed:
            before = time.perf_counter()
            self._press(cv2.waitKey(int(np.clip(1000 * (due - before), 1, 20))) & 0xFF)
            self.closed = self.closed or not is_visible(WINDOW)
            now = time.perf_counter()
            if before < self.hint_end <= now and self.draw and not self.closed:
                self.draw()  # Removes the hint from an image that stays.
            if self.paused:
                self.clock, due = self.clock + now - before, due + now - before
            elif now >= due:
                return

    def _press(self, key):
        if key in (ord("q"), ESCAPE):
            self.closed = True
        elif key == ord(" "):
            self.paused = not self.paused
        elif key == ord("m"):
            self.mirrored = not self.mirrored
        elif chr(key) in "bfh" and self.draw:
            self.overlays ^= {chr(key)}
            self.draw()  # At once, because the image may stand still.
        elif key == ord("s") and self.draw:
            save_snapshot(self.shown)


def save_snapshot(image):
    """Writes an image to a new file in `OUTPUT_DIR`, and prints where or why not."""
    path = OUTPUT_DIR / f"snapshot-{datetime.datetime.now():%Y%m%d-%H%M%S-%f}.png"
    try:
        write_image(path, image)
        print(f"Saved {path}.", flush=True)
    except OSError as error:
        print(error, flush=True)


def is_visible(window):
    """Returns whether a window is open."""
    try:
        return cv2.getWindowProperty(window, cv2.WND_PROP_VISIBLE) >= 1
    except cv2.error:  # Qt raises once the last window is closed.
        return False


def has_display():
    """Returns whether a window can open. Without a display, OpenCV on Linux aborts the process instead of raising."""
    if not sys.platform.startswith("linux"):
        return True
    if not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return False
    probe = [sys.executable, "-c", "import cv2; cv2.namedWindow('probe')"]  # The display that they name may not exist.
    tried = subprocess.run(probe, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    return tried.returncode >= 0  # Negative: a signal ended it. An exception will be raised again, with its reason.


def window_size(width, height):
    """Returns the width and height in pixels of the window for a frame of this size."""
    scale = min(1.0, LARGEST[0] / width, LARGEST[1] / height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def put_notes(image, lines):
    """Writes lines of text into the upper left corner of an image."""
    scale, bottom = utils.text_scale(image), 0
    for line in lines:
        corner = (0, bottom + round(36 * scale) if bottom else 0)
        bottom = utils.put_text(image, line, corner, scale * 0.8, NOTE_COLOR)


def put_bars(image, probabilities):
    """Draws probabilities, dict of emotion to 0..1, as bars into the lower left corner of an image, uint8 (H, W, 3)."""
    scale = utils.text_scale(image)
    row, length, gap = round(30 * scale), round(240 * scale), round(4 * scale)
    for line, (name, probability) in enumerate(probabilities.items()):
        bottom = image.shape[0] - (len(probabilities) - 1 - line) * row
        image[max(0, bottom - row) : bottom, :length] //= 3
        end, color = (max(1, int(length * probability)), bottom - gap), utils.EMOTION_COLORS[name][::-1]
        cv2.rectangle(image, (0, bottom - row + gap), end, color, cv2.FILLED)
        origin, text = (2 * gap, bottom - round(9 * scale)), f"{name} {probability:.0%}"
        for ink, thickness in ((0, 0, 0), max(2, gap)), ((255, 255, 255), max(1, round(scale))):  # White, outlined.
            cv2.putText(image, text, origin, cv2.FONT_HERSHEY_SIMPLEX, 0.6 * scale, ink, thickness, cv2.LINE_AA)
