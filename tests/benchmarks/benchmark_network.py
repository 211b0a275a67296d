"""Times the networks of model folders in turn: ms a face on one thread, as shipped (int8) and in float32.

    python tests/benchmarks/benchmark_network.py                                  the shipped models
    python tests/benchmarks/benchmark_network.py models/emotions-5 /tmp/models/emotions-5

The last one is what the others are compared with. A former network is in the history:
`git archive COMMIT models/emotions-5 | tar -x -C /tmp`. Prints a table and writes figures/benchmark_network.json.
"""

import argparse
import datetime
import json
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # Before LiteRT is loaded.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import utils

with utils.quiet_stderr():  # TensorFlow prints what it does not find.
    import keras

import numpy as np
from benchmark_demo import processor

ROUNDS, CALLS = 30, 20  # Every network in turn, so that a busy moment of the machine hits all of them.
INT8_FLAGS = {"avx512_vnni", "avx_vnni"}  # In /proc/cpuinfo of processors with int8 instructions.


def load_networks(folder):
    """Returns the network of a model folder as it is shipped and in float32, a dict of callables."""
    with tempfile.TemporaryDirectory() as place, utils.quiet_stderr():
        path = Path(place, "float.tflite")
        keras.models.load_model(folder / "model.keras", compile=False).export(path, format="litert", verbose=False)
        contents = {"int8": (folder / "model.tflite").read_bytes(), "float32": path.read_bytes()}
    return {kind: utils.load_network(content) for kind, content in contents.items()}


def measure(networks):
    """Returns the median time in ms of each network for one face."""
    face, times = np.zeros((1, 48, 48, 1), np.float32), {name: [] for name in networks}
    for _ in range(ROUNDS):
        for name, network in networks.items():
            network(faces=face)
            started = time.perf_counter()
            for _ in range(CALLS):
                network(faces=face)
            times[name].append(1000 * (time.perf_counter() - started) / CALLS)
    return {name: round(float(np.median(values)), 3) for name, values in times.items()}


def has_int8_instructions():
    """Returns whether the processor multiplies int8, None where the system does not tell."""
    cpuinfo = Path("/proc/cpuinfo")
    return bool(INT8_FLAGS & set(cpuinfo.read_text().split())) if cpuinfo.exists() else None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, default=sorted((ROOT / "models").glob("emotions-?")))
    folders = parser.parse_args().folders
    networks = {(str(folder), kind): run for folder in folders for kind, run in load_networks(folder).items()}
    times = measure(networks)
    result = {"date": datetime.date.today().isoformat(), "processor": processor()}
    result |= {"int8_instructions": has_int8_instructions(), "ms_a_face": {}}
    print("| network | parameters | multiply-adds | kB | int8 ms | float32 ms | share of the last |")
    print("|---|---|---|---|---|---|---|")
    for folder in folders:
        description, size = json.loads((folder / "model.json").read_text()), (folder / "model.tflite").stat().st_size
        own = {kind: times[str(folder), kind] for kind in ("int8", "float32")}
        shares = [f"{own[kind] / times[str(folders[-1]), kind]:.2f}" for kind in own]
        cells = [folder, description["parameters"], description["macs"], size // 1000, *own.values(), ", ".join(shares)]
        print(f"| {' | '.join(map(str, cells))} |")
        name = folder.relative_to(ROOT).as_posix() if folder.is_relative_to(ROOT) else str(folder)
        result["ms_a_face"][name] = own
    (ROOT / "figures" / "benchmark_network.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
