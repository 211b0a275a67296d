"""The demo's window: the keys, the overlays that they switch, and the text over the image."""

import concurrent.futures
import contextlib
import datetime
import functools
import os
import subprocess
import sys
import time

import cv2
import numpy as np

import utils
from video import LIVE_KINDS, OUTPUT_DIR, write_image

TITLE = "Emotions"
FLAGS = cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO | cv2.WINDOW_GUI_NORMAL  # GUI_NORMAL: without Qt's toolbar.
HINT = "h: help, q: quit"
MIRROR = "m: mirror"  # Takes effect in the next frame, so not for a single image.
HELP = ("q, Esc: quit", "space: pause", "s: snapshot", MIRROR, "b: probabilities", "f: frame rate", "h: help")
PAUSED = "paused, space continues"
ESCAPE = 27
MAX_WINDOW = (1280, 720)  # Pixels of a new window. Its edges can be dragged.
HINT_SECONDS = 5.0
SAVED_SECONDS = 1.5
KEY_INTERVAL = 0.01  # Seconds. Of several keys pressed between two calls of waitKey, Qt keeps only the last.
SECONDS_PER_IMAGE = 1.0  # For the images of a folder. A single image stays until the user quits.


class Window(contextlib.AbstractContextManager):
    """Shows annotated frames, and handles the keys.

    Args:
        source: from `video.open_source`.

    Attributes:
        mirrored: whether the next frame must be mirrored.
        closed: whether the demo must end.
    """

    def __init__(self, source):
        self.source = source
        self.mirrored, self.paused, self.closed = source.kind == "camera", False, False
        self.help = [line for line in HELP if line != MIRROR or source.kind != "image"]
        self.overlays = {"f"}  # Keys of the overlays that are on: b, f, h.
        self.draw = self.picture = None  # Function that redraws the current frame; the drawn image without text.
        self.file, self.clock = None, 0.0  # The current video; when it started, plus the pauses.
        self.notes = {HINT: time.perf_counter() + HINT_SECONDS}  # Text -> when it vanishes.
        self.worker = concurrent.futures.ThreadPoolExecutor(max_workers=1)
        cv2.namedWindow(TITLE, FLAGS)

    def __exit__(self, *error):
        self.worker.shutdown()
        cv2.destroyAllWindows()

    def call(self, function, *args):
        """Calls a function in another thread, and handles keys until it returns."""
        future = self.worker.submit(function, *args)
        try:
            while not concurrent.futures.wait([future], KEY_INTERVAL).done:
                self._handle_keys(0)
        finally:
            concurrent.futures.wait([future])  # After Ctrl-C too, to complete the frame.
        return future.result()

    def show(self, annotated, source_frame, faces, fps):
        """Shows a frame until the next one is due, and handles the keys.

        Args:
            annotated: uint8 (H, W, 3) BGR.
            source_frame: `video.SourceFrame`.
            faces: list of `utils.Face`.
            fps: frames per second of the demo.
        """
        if self.closed:  # Drawing would open the window again.
            return
        if self.draw is None:
            cv2.resizeWindow(TITLE, *window_size(*annotated.shape[1::-1]))
        now, time_s, rate = time.perf_counter(), source_frame.time_s, f"{fps:.0f} frames/s"
        if self.source.kind in LIVE_KINDS:
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
        if self.draw and not self.closed:
            self.draw(message=f"No picture from {self.source.title}; trying to open it again.")
        self._wait(0.0)

    def _draw(self, annotated, faces, rate, message=None):
        self.picture = annotated.copy()
        if faces and "b" in self.overlays:
            nearest = max(faces, key=lambda face: face.box[2])  # The widest box.
            put_bars(self.picture, nearest, numbered=len(faces) > 1)
        now = time.perf_counter()
        self.notes = {text: end for text, end in self.notes.items() if end > now}
        lines = [message, PAUSED if self.paused else None, rate if "f" in self.overlays else None]
        lines += [note for note in self.notes if note != HINT or "h" not in self.overlays]
        lines += self.help if "h" in self.overlays else []
        shown = self.picture.copy()
        put_lines(shown, list(filter(None, lines)))
        cv2.imshow(TITLE, shown)

    def _wait(self, due):
        """Handles keys, at least once, until the time `due`. A pause postpones `due`."""
        while not self.closed:
            before = time.perf_counter()
            self._handle_keys(20 if self.paused else int(np.clip(1000 * (due - before), 0, 20)))
            now = time.perf_counter()
            if min(self.notes.values(), default=np.inf) <= now:
                self._redraw()
            if self.paused:
                self.clock, due = self.clock + now - before, due + now - before
            elif now >= due:
                return

    def _handle_keys(self, milliseconds):
        """Waits up to this many milliseconds for a key, and executes it."""
        key = wait_key(milliseconds) & 0xFF
        self.closed = self.closed or key in (ord("q"), ESCAPE) or not is_visible(TITLE)
        if key == ord(" "):
            self.paused = not self.paused
        elif key == ord("m"):
            self.mirrored = not self.mirrored
        elif chr(key) in "bfh":
            self.overlays ^= {chr(key)}
        elif key == ord("s") and self.draw:
            self.notes[save_snapshot(self.picture)] = time.perf_counter() + SAVED_SECONDS
        if chr(key) in " bfhs":
            self._redraw()  # Now, because there may be no next frame.

    def _redraw(self):
        if self.draw and not self.closed:
            self.draw()


def wait_key(milliseconds):
    """Returns the code of a pressed key, or -1 after this many milliseconds without one."""
    return cv2.waitKey(milliseconds) if milliseconds else cv2.pollKey()  # On Windows, waitKey(1) takes 15 ms.


def save_snapshot(image):
    """Writes an image to a new file in `OUTPUT_DIR` and prints the path or the error. Returns a note for the window."""
    path = OUTPUT_DIR / f"snapshot-{datetime.datetime.now():%Y%m%d-%H%M%S-%f}.png"
    try:
        write_image(path, image)
        print(f"Saved {path}.", flush=True)
        return "snapshot saved"
    except OSError as error:
        print(error, flush=True)
        return str(error)


def is_visible(window):
    """Returns whether a window is open. On macOS it has no close button, and a minimized one counts as invisible."""
    try:
        return sys.platform == "darwin" or cv2.getWindowProperty(window, cv2.WND_PROP_VISIBLE) >= 1
    except cv2.error:  # Qt raises once the last window is closed.
        return False


def has_display():
    """Returns whether a window can open. Without a display, OpenCV on Linux aborts the process instead of raising."""
    if not sys.platform.startswith("linux"):
        return True
    if not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return False
    probe = [sys.executable, "-c", "import cv2; cv2.namedWindow('probe')"]  # The variables may name no real display.
    tried = subprocess.run(probe, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    return tried.returncode >= 0  # Negative: a signal ended the probe. This process will raise any exception again.


def window_size(width, height):
    """Returns the width and height in pixels of the window for a frame of this size."""
    scale = min(1.0, MAX_WINDOW[0] / width, MAX_WINDOW[1] / height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def put_lines(image, lines):
    """Writes lines of text into the upper left corner of an image, uint8 (H, W, 3) BGR."""
    if lines:
        text = stack([utils.draw_text(line, utils.text_size(image), utils.DARK) for line in lines])
        utils.paste(image, utils.shrink(text, image.shape[1]), (0, 0))


def put_bars(image, face, numbered):
    """Draws the probabilities of a `utils.Face` as bars into the lower left corner of an image, uint8 (H, W, 3) BGR."""
    size, items = utils.text_size(image), face.probabilities.items()
    names = stack([utils.draw_text(name, size, utils.DARK) for name in face.probabilities])
    shares = stack([utils.draw_text(f"{probability:.0%}", size, utils.DARK) for _, probability in items])
    row, bars = len(names) / len(items), np.full((len(names), 8 * size, 3), utils.DARK, np.uint8)
    for line, (name, probability) in enumerate(items):
        top, bottom = round((line + 0.25) * row), round((line + 0.75) * row)
        bars[top:bottom, : max(1, round(probability * bars.shape[1]))] = utils.EMOTION_COLORS[name][::-1]
    panel = np.hstack([names, bars, shares])
    if numbered and face.track:
        panel = stack([utils.draw_text(f"Face {face.track}", size, utils.DARK), panel])
    panel = utils.shrink(panel, image.shape[1])
    utils.paste(image, panel, (0, max(0, image.shape[0] - len(panel))))


def stack(images):
    """Returns one image of a list of images, uint8 (h, w, 3), stacked vertically and padded to equal width."""
    width = max(image.shape[1] for image in images)
    return np.vstack([
        cv2.copyMakeBorder(image, 0, 0, 0, width - image.shape[1], cv2.BORDER_CONSTANT, value=utils.DARK)
        for image in images
    ])  # fmt: skip
