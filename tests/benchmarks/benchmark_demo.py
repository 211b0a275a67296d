"""Times the demo next to the loop of most tutorials, on the same clips, and the network next to a Haar scan.

    python tests/benchmarks/benchmark_demo.py   about ten minutes on two cores, with nothing else running
    python tests/benchmarks/benchmark_demo.py --quick           one short run of each, which writes nothing

The tutorial's loop scans every frame in full and calls `model.predict` for every face. Each loop runs three times, in
turn; the table has the run with the median frame rate. Reading and writing the clip is timed next to OpenCV, which
writes MPEG-4 without sound. Then the demo plays the bundled clip 80 times over, for the memory of a long run (on
Linux). Writes figures/benchmark_demo.json. The status is 1 if a target is missed.
"""

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import cv2
import numpy as np

import utils
import video
import webcam_demo

RUNS = 3
BASELINE_FRAMES = 75  # The tutorial's loop is slow.
REPEATS = 80  # Of the bundled clip's 255 frames, to see whether the memory stays flat.
CLIP = ROOT / "data" / "demo.mp4"  # 640x360 pixels.
LARGE, SMALL = "1280x720, two faces", "640x360, bundled clip"
MAX_NETWORK_SHARE = 0.1  # Of a full scan of 640x360 pixels, for one face.
MIN_SPEEDUP = 7.0  # Demo over tutorial, frames per second at 1280x720.
MAX_MEMORY_MB = 170.0  # At 1280x720.


def write_large_clip(path):
    """Writes 180 frames of 1280x720 pixels with two faces: that part of the bundled clip, enlarged, four times."""
    capture = cv2.VideoCapture(str(CLIP))
    frames = [cv2.resize(capture.read()[1], (1280, 720), interpolation=cv2.INTER_CUBIC) for _ in range(90)][45:]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 25, (1280, 720))
    for frame in 2 * (frames + frames[::-1]):  # There and back, so that nothing jumps.
        writer.write(frame)
    writer.release()


def load_cascade():
    return cv2.CascadeClassifier(cv2.data.haarcascades + "haarcascade_frontalface_default.xml")


def run_baseline(clip):
    """Runs the tutorial's loop in this process; prints what --benchmark prints, as far as it applies."""
    import keras

    model, cascade = keras.models.load_model(utils.DEFAULT_MODEL / "model.keras", compile=False), load_cascade()
    capture, seconds, faces, startup, started = cv2.VideoCapture(clip), [], 0, None, time.perf_counter()
    while len(seconds) < BASELINE_FRAMES:
        before = time.perf_counter()
        ok, frame = capture.read()
        if not ok:
            break
        gray = cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY)
        for x, y, width, height in cascade.detectMultiScale(gray, 1.1, 5):
            face = cv2.resize(gray[y : y + height, x : x + width], (48, 48))
            outputs = model.predict(face[None, ..., None], verbose=0)
            label = int(outputs["labels"].argmax())
            cv2.rectangle(frame, (x, y), (x + width, y + height), (0, 255, 0), 2)
            cv2.putText(frame, utils.EMOTIONS[label], (x, y), cv2.FONT_HERSHEY_SIMPLEX, 1, (0, 255, 0), 2)
            faces += 1
            startup = startup or round(time.perf_counter() - webcam_demo.STARTED, 3)
        seconds.append(time.perf_counter() - before)
    result = {"frames": len(seconds), "faces": faces, "fps": round(len(seconds) / (time.perf_counter() - started), 1)}
    result |= {"startup_s": startup, "peak_memory_mb": webcam_demo.peak_memory_mb()}
    median, p95 = np.percentile(np.array(seconds) * 1000, (50, 95)).round(2).tolist()
    print(json.dumps(result | {"frame_ms": {"median": median, "p95": p95}}))


def run(*command):
    """Runs a command; returns the JSON object on the last line that it prints."""
    finished = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, check=True)
    *table, result = finished.stdout.splitlines()
    result = json.loads(result)
    for line in table:  # The demo's JSON has the stages only.
        if line.startswith("frame "):
            result["frame_ms"] = dict(zip(("median", "p95"), map(float, line.split()[1:]), strict=True))
    return result


def measure_loops(clip, runs):
    """Returns the median run of each loop on a clip."""
    loops = {
        "demo": (ROOT / "webcam_demo.py", clip, "--no-display", "--benchmark"),
        "tutorial": (__file__, "--baseline", clip),
    }
    results = [{name: run(*command) for name, command in loops.items()} for _ in range(runs)]
    return {name: sorted((of_all[name] for of_all in results), key=lambda r: r["fps"])[runs // 2] for name in loops}


def measure_network():
    """Returns the median time in ms of a full scan of the bundled clip's frames, and of the network for one face."""
    model, cascade, capture, scans, calls = (
        utils.load_emotion_model(),
        load_cascade(),
        cv2.VideoCapture(str(CLIP)),
        [],
        [],
    )
    for _ in range(60):
        gray = cv2.cvtColor(capture.read()[1], cv2.COLOR_BGR2GRAY)
        started = time.perf_counter()
        cascade.detectMultiScale(gray, 1.1, 5)
        scanned = time.perf_counter()
        model.predict(utils.crop_faces(gray, np.array([[200, 80, 140, 140]])))
        scans.append(1000 * (scanned - started))
        calls.append(1000 * (time.perf_counter() - scanned))
    scan, call = float(np.median(scans)), float(np.median(calls))
    return {"scan_ms": round(scan, 2), "network_ms": round(call, 2), "share": round(call / scan, 3)}


def measure_files(clip, folder):
    """Returns the ms a frame, and those of all processors, in which OpenCV and video.py read and write a clip."""
    frames = [frame.image for frame in video.read_video(clip, "clip")]

    def read_with_opencv():
        capture = cv2.VideoCapture(str(clip))
        while capture.read()[0]:
            pass

    def read():
        for _ in video.read_video(clip, "clip"):
            pass

    def write_with_opencv():
        codec, size = cv2.VideoWriter.fourcc(*"mp4v"), frames[0].shape[1::-1]
        writer = cv2.VideoWriter(str(folder / "opencv.mp4"), codec, 25, size)
        for frame in frames:
            writer.write(frame)
        writer.release()

    def write():
        first = video.SourceFrame(frames[0], 0.0, "clip", 25.0, still=False)
        writer = video.VideoWriter(folder / "video.mp4", frames[0].shape[1::-1], first)
        for number, frame in enumerate(frames):
            writer.write(frame, number / 25)
        writer.close()

    result = {}
    for work in RUNS * [read_with_opencv, read, write_with_opencv, write]:
        started, used = time.perf_counter(), time.process_time()
        work()
        times = time.perf_counter() - started, time.process_time() - used
        result.setdefault(work.__name__, []).append([round(1000 * seconds / len(frames), 2) for seconds in times])
    result = {name: dict(zip(("ms", "cpu_ms"), min(times), strict=True)) for name, times in result.items()}
    return result | {"kb": {name: (folder / f"{name}.mp4").stat().st_size // 1000 for name in ("opencv", "video")}}


def measure_memory(folder):
    """Returns the memory of the demo in MB after each tenth of a long run's time, list of float."""
    for number in range(REPEATS):
        (folder / f"{number}.mp4").symlink_to(CLIP)
    command = [sys.executable, ROOT / "webcam_demo.py", folder, "--no-display"]
    running, held = subprocess.Popen(command, stdout=subprocess.DEVNULL), []
    while running.poll() is None:
        status = Path(f"/proc/{running.pid}/status").read_text()
        if "VmRSS:" in status:  # It is missing at the very end.
            held.append(round(int(status.partition("VmRSS:")[2].split()[0]) / 1024, 1))
        time.sleep(0.2)
    return [held[len(held) * tenth // 10 - 1] for tenth in range(1, 11)]


def processor():
    """Returns the name of the processor."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if os.path.exists("/proc/cpuinfo") else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def missed_targets(result):
    """Returns a sentence for each target that a result misses."""
    loops = result["clips"][LARGE]
    speedup = loops["demo"]["fps"] / loops["tutorial"]["fps"]
    checks = [
        (
            result["network"]["share"] <= MAX_NETWORK_SHARE,
            f"The network takes {result['network']['share']:.0%} of a scan.",
        ),
        (speedup >= MIN_SPEEDUP, f"The demo is {speedup:.1f} times as fast as the tutorial."),
        (loops["demo"]["peak_memory_mb"] < MAX_MEMORY_MB, f"The demo takes {loops['demo']['peak_memory_mb']} MB."),
    ]
    return [sentence for reached, sentence in checks if not reached]


def print_table(result):
    print("| clip | loop | ms a frame, median and p95 | frames/s | faces / frames | start, s | memory, MB |")
    print("|---|---|---|---|---|---|---|")
    for name, loops in result["clips"].items():
        for loop, r in loops.items():
            times = f"{r['frame_ms']['median']:.1f}, {r['frame_ms']['p95']:.1f}"
            counts = f"{r['faces']} / {r['frames']}"
            cells = [name, loop, times, f"{r['fps']:.1f}", counts, r["startup_s"], r["peak_memory_mb"]]
            print(f"| {' | '.join(map(str, cells))} |")
    network = result["network"]
    for name, times in result["files"].items():
        print(f"{name}: {times}")
    print(f"Scan of 640x360: {network['scan_ms']} ms. Network, one face: {network['network_ms']} ms.")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--baseline", metavar="CLIP", help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    if args.baseline:
        return run_baseline(args.baseline)
    with tempfile.TemporaryDirectory() as folder:
        large = Path(folder, "large.mp4")
        write_large_clip(large)
        result = {"date": datetime.date.today().isoformat(), "machine": f"{os.cpu_count()} cores, {processor()}"}
        result["network"] = measure_network()
        result["files"] = measure_files(large, Path(folder))
        clips = {LARGE: large} if args.quick else {LARGE: large, SMALL: CLIP}
        result["clips"] = {name: measure_loops(clip, 1 if args.quick else RUNS) for name, clip in clips.items()}
        if not args.quick:
            Path(folder, "repeated").mkdir()
            frames = result["clips"][SMALL]["demo"]["frames"] * REPEATS
            result["long_run"] = {
                "frames": frames,
                "memory_mb_after_each_tenth": measure_memory(Path(folder, "repeated")),
            }
    print_table(result)
    missed = missed_targets(result)
    print("\n".join(f"Target missed. {text}" for text in missed) or "All targets are reached.")
    if not args.quick:
        (ROOT / "figures" / "benchmark_demo.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
