"""Runs the demo on a stream for an hour, with lost connections, and follows its memory, threads and descriptors.

    python tests/benchmarks/long_run.py   60 minutes; needs Linux and a tenth of a core
    python tests/benchmarks/long_run.py --minutes 2   a try, which writes nothing

A web server on loopback sends the bundled clip over and over as motion JPEG. It hangs up every three minutes. Writes
figures/long_run.json. The status is 1 if memory, threads, descriptors or time a frame grow, if the frame rate falls by
5%, or if the log has gaps.
"""

import argparse
import contextlib
import datetime
import http.server
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import cv2
import numpy as np

ROOT = Path(__file__).resolve().parents[2]
FULL_MINUTES = 60
FPS, SIZE = 15, (320, 180)  # Frames a second; width and height in pixels.
SECONDS_PER_CONNECTION = 180
COLUMNS = ("memory_mb", "threads", "descriptors", "frames_per_second", "cpu_ms_per_frame")
# Ratio of the last minute to the first. --benchmark's times take 1.7 MB an hour; other programs slow frames down.
MAX_GROWTH = {"memory_mb": 1.05, "threads": 1, "descriptors": 1, "cpu_ms_per_frame": 1.5}
MIN_FRAME_RATE = 0.95


class Stream(http.server.BaseHTTPRequestHandler):
    """Sends `parts`, the frames as bytes, at `FPS` frames a second, and hangs up."""

    parts, cuts = (), 0

    def do_GET(self):
        self.wfile.write(b"HTTP/1.0 200 OK\r\nContent-Type: multipart/x-mixed-replace; boundary=frame\r\n\r\n")
        started = time.monotonic()
        for number in range(FPS * SECONDS_PER_CONNECTION):
            self.wfile.write(self.parts[number % len(self.parts)])
            time.sleep(max(0.0, started + number / FPS - time.monotonic()))
        Stream.cuts += 1

    def handle(self):
        with contextlib.suppress(OSError):  # The demo hangs up first.
            super().handle()


def encode_clip():
    """Returns the frames of the bundled clip as parts of a multipart stream, list of bytes."""
    capture, parts = cv2.VideoCapture(str(ROOT / "data" / "demo.mp4")), []
    while (read := capture.read())[0]:
        jpeg = cv2.imencode(".jpg", cv2.resize(read[1], SIZE, interpolation=cv2.INTER_AREA))[1].tobytes()
        parts.append(b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n%s\r\n" % (len(jpeg), jpeg))
    return parts


def sample(process, log):
    """Returns frames in the log, CPU seconds, resident memory in MB, threads and open descriptors of the demo."""
    folder = Path(f"/proc/{process.pid}")
    status, fields = (folder / "status").read_text(), (folder / "stat").read_text().rpartition(")")[2].split()
    memory, threads = (int(re.search(rf"{name}:\s+(\d+)", status)[1]) for name in ("VmRSS", "Threads"))
    frames = int(log.read_text(encoding="utf-8").splitlines()[-1].partition(",")[0]) + 1
    seconds = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # Fields 14 and 15 of proc(5).
    return frames, seconds, round(memory / 1024, 1), threads, len(os.listdir(folder / "fd"))


def measure(folder, minutes):
    """Runs the demo for some minutes; returns what figures/long_run.json holds."""
    Stream.parts = encode_clip()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Stream)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    log, address = folder / "log.csv", f"http://127.0.0.1:{server.server_port}/video"
    command = [sys.executable, ROOT / "webcam_demo.py", address, "--no-display", "--log", log, "--benchmark"]
    demo, samples = subprocess.Popen(command, stdout=subprocess.PIPE, text=True), []
    for minute in range(1, minutes + 1):
        time.sleep(60)
        samples.append(sample(demo, log))
        print(minute, *samples[-1], flush=True)
    demo.terminate()  # Acts as Ctrl-C.
    frames = json.loads(demo.communicate()[0].splitlines()[-1])["frames"]
    header, *rows = (line.split(",") for line in log.read_text(encoding="utf-8").splitlines())
    logged = sorted({int(row[0]) for row in rows})
    complete = {len(row) for row in rows} == {len(header)} and logged == list(range(len(logged)))
    complete = complete and frames - len(logged) in (0, 1)  # Ctrl-C may fall between the last frame and its row.
    taken, seconds, *columns = zip(*samples, strict=True)
    new, spent = np.diff(taken), np.diff(seconds)  # Of each minute but the first.
    columns += [(new / 60).round(2).tolist(), (1000 * spent / new).round(2).tolist()]
    machine = f"{os.cpu_count()} cores, {re.search('model name.*: (.*)', Path('/proc/cpuinfo').read_text())[1]}"
    result = {"date": str(datetime.date.today()), "machine": machine, "load_average": round(os.getloadavg()[2], 1)}
    result |= {"minutes": minutes, "cuts": Stream.cuts, "frames": frames, "log_complete": complete}
    for name, values in zip(COLUMNS, columns, strict=True):
        result[name] = {"first": values[0], "last": values[-1], "min": min(values), "max": max(values)}
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=int, default=FULL_MINUTES, help="at least 2 (default: 60)")
    minutes = parser.parse_args().minutes
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder), minutes)
    print(text := json.dumps(result, indent=2))
    if minutes >= FULL_MINUTES:
        (ROOT / "figures" / "long_run.json").write_text(text + "\n", encoding="utf-8")
    grown = [name for name, limit in MAX_GROWTH.items() if result[name]["last"] > limit * result[name]["first"]]
    rate = result["frames_per_second"]
    steady = rate["last"] >= MIN_FRAME_RATE * rate["first"]
    return 0 if result["log_complete"] and steady and not grown else 1


if __name__ == "__main__":
    sys.exit(main())
