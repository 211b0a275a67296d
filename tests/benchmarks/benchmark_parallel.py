"""Times one process against two: the demo on films, and `read_emotions` on pictures with Dask.

    python tests/benchmarks/benchmark_parallel.py   two minutes on two cores, with nothing else running

Each process has one thread (`OMP_NUM_THREADS`). Writes figures/benchmark_parallel.json. Times are seconds.
"""

import concurrent.futures
import datetime
import json
import os
import subprocess
import sys
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # Also in the processes that are started.
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
os.environ["PYTHONPATH"] = str(ROOT)

import dask.bag
import distributed
import skimage.data

import utils

FILMS, PICTURES = 4, 24


def label_film(_):
    command = [sys.executable, ROOT / "webcam_demo.py", ROOT / "data" / "demo.mp4", "--no-display"]
    subprocess.run(command, check=True, capture_output=True)


def time_films(processes):
    """Returns the seconds for copies of the bundled clip, so many at a time."""
    started = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(processes) as pool:
        list(pool.map(label_film, range(FILMS)))
    return round(time.perf_counter() - started, 2)


def count_faces(frame):
    return len(utils.read_emotions(frame))


def time_pictures(processes):
    """Returns the seconds for pictures of 512x512 pixels, on a cluster of processes that have loaded the model."""
    frame = skimage.data.astronaut()[..., ::-1].copy()
    with distributed.Client(n_workers=processes, threads_per_worker=1, dashboard_address=None) as client:
        client.run(count_faces, frame)
        started = time.perf_counter()
        counts = dask.bag.from_sequence([frame] * PICTURES, npartitions=8).map(count_faces).compute()
        assert counts == [1] * PICTURES
        return round(time.perf_counter() - started, 2)


def main():
    result = {"date": datetime.date.today().isoformat(), "cores": os.cpu_count(), "films": FILMS, "pictures": PICTURES}
    for processes in (1, 2):
        result[f"films_{processes}_s"] = time_films(processes)
        result[f"pictures_{processes}_s"] = time_pictures(processes)
    print(json.dumps(result, indent=2))
    (ROOT / "figures" / "benchmark_parallel.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
