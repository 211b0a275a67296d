"""Times the demo, with its own model and the small one, beside the loop of most tutorials, on the same clips.

    python tests/benchmark_demo.py                   about eight minutes on two cores, with nothing else running

The tutorial's loop scans every frame in full and calls `model.predict` for every face. Each runs three times, in turn;
the table has the run with the median frame rate. Then the demo alone plays the bundled clip 80 times over, for the
memory of a long run (on Linux). Prints both and writes figures/benchmark_demo.json.
"""

import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import cv2
import numpy as np

import utils
import webcam_demo

RUNS = 3
BASELINE_FRAMES = 75  # Of each clip: it is slow.
REPEATS = 80  # Of the bundled clip's 255 frames, to see whether the memory stays flat: 20,400 frames.


def write_large_clip(path):
    """Writes 150 frames of 1280x720 pixels with two faces: the middle of the bundled clip, enlarged, twice."""
    capture, frames = cv2.VideoCapture(str(ROOT / "data" / "demo.mp4")), []
    for _ in range(150):
        frames.append(cv2.resize(capture.read()[1], (1280, 720), interpolation=cv2.INTER_CUBIC))
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 25, (1280, 720))
    for frame in frames[75:] + frames[:74:-1]:  # There and back, so that nothing jumps.
        writer.write(frame)
    writer.release()


def run_baseline(clip):
    """Runs the tutorial's loop in this process; prints what the demo's --benchmark prints, as far as it applies."""
    import keras

    model = keras.models.load_model(utils.DEFAULT_MODEL / "model.keras")
    detector, capture = utils.load_face_detector(), cv2.VideoCapture(clip)
    seconds, faces, startup, started = [], 0, None, time.perf_counter()
    while len(seconds) < BASELINE_FRAMES:
        before = time.perf_counter()
        ok, frame = capture.read()
        if not ok:
            break
        gray = cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY)
        for x, y, width, height in detector.detectMultiScale(gray, 1.1, 5):
            face = cv2.resize(gray[y : y + height, x : x + width], (48, 48))
            label = int(model.predict(face[None, ..., None], verbose=0).argmax())
            cv2.rectangle(frame, (x, y), (x + width, y + height), (0, 255, 0), 2)
            cv2.putText(frame, utils.EMOTIONS[label], (x, y), cv2.FONT_HERSHEY_SIMPLEX, 1, (0, 255, 0), 2)
            faces += 1
            startup = startup or webcam_demo.process_seconds()
        seconds.append(time.perf_counter() - before)
    result = {"frames": len(seconds), "faces": faces, "fps": len(seconds) / (time.perf_counter() - started)}
    result |= {"startup_s": startup, "peak_memory_mb": webcam_demo.peak_memory_mb()}
    print(json.dumps(result | {"frame_ms": percentiles(seconds)}))


def percentiles(seconds):
    return dict(
        zip(("median", "p95"), np.percentile(np.array(seconds) * 1000, (50, 95)).round(2).tolist(), strict=True)
    )


def run(*command):
    """Runs a command; returns the JSON object on the last line of what it prints."""
    finished = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, check=True)
    *table, result = finished.stdout.splitlines()
    result = json.loads(result)
    for line in table:  # The demo's JSON has the stages only.
        if line.startswith("frame "):
            result["frame_ms"] = dict(zip(("median", "p95"), map(float, line.split()[1:]), strict=True))
    return result


def measure(clip):
    """Returns the median run of each loop on a clip."""
    demo = (ROOT / "webcam_demo.py", "--source", clip, "--no-display", "--benchmark", "--model")
    loops = {
        "demo": (*demo, utils.DEFAULT_MODEL),
        "demo, small-5": (*demo, ROOT / "models" / "small-5"),
        "tutorial": (__file__, "--baseline", clip),
    }
    runs = [{name: run(*command) for name, command in loops.items()} for _ in range(RUNS)]
    return {name: sorted((of_all[name] for of_all in runs), key=lambda r: r["fps"])[RUNS // 2] for name in loops}


def measure_memory(clip, folder):
    """Returns what the demo holds in MB after each tenth of a long run's time, list of float."""
    for number in range(REPEATS):
        (folder / f"{number}.mp4").symlink_to(clip)
    command = [sys.executable, ROOT / "webcam_demo.py", "--source", folder, "--no-display"]
    running, held = subprocess.Popen(command, stdout=subprocess.DEVNULL), []
    while running.poll() is None:
        status = Path(f"/proc/{running.pid}/status").read_text()
        if "VmRSS:" in status:  # Not any more in the moment of its end.
            held.append(round(int(status.partition("VmRSS:")[2].split()[0]) / 1024, 1))
        time.sleep(0.2)
    return [held[len(held) * tenth // 10 - 1] for tenth in range(1, 11)]


def main():
    if len(sys.argv) == 3 and sys.argv[1] == "--baseline":
        return run_baseline(sys.argv[2])
    with tempfile.TemporaryDirectory() as folder:
        large = Path(folder) / "large.mp4"
        write_large_clip(large)
        clips = {"1280x720, two faces": large, "640x360, bundled clip": ROOT / "data" / "demo.mp4"}
        result = {"date": datetime.date.today().isoformat(), "machine": f"{os.cpu_count()} cores, {platform.machine()}"}
        result["clips"] = {name: measure(clip) for name, clip in clips.items()}
        (Path(folder) / "repeated").mkdir()
        memory = measure_memory(clips["640x360, bundled clip"], Path(folder) / "repeated")
        result["long_run"] = {"frames": 255 * REPEATS, "memory_mb_after_each_tenth": memory}
    print("| clip | loop | ms a frame, median and 95 % | frames/s | faces / frames | start, s | memory, MB |")
    print("|---|---|---|---|---|---|---|")
    for name, loops in result["clips"].items():
        for loop, r in loops.items():
            cells = [
                name,
                loop,
                f"{r['frame_ms']['median']:.1f}, {r['frame_ms']['p95']:.1f}",
                f"{r['fps']:.1f}",
                f"{r['faces']} / {r['frames']}",
                r["startup_s"],
                r["peak_memory_mb"],
            ]
            print(f"| {' | '.join(map(str, cells))} |")
    print(f"Memory over {255 * REPEATS:,} frames: {memory[0]} MB after a tenth, {memory[-1]} MB at the end.")
    (ROOT / "figures" / "benchmark_demo.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
