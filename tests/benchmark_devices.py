"""Trains the same few epochs on one device, on two virtual ones and in two processes, and compares losses and times.

    pip install jax
    python tests/benchmark_devices.py                needs data/fer2013.csv; about five minutes on two cores

All devices here are this machine's processor, each bound to one core, so that two have twice the cores of one. Prints a
table and writes figures/benchmark_devices.json.
"""

import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).resolve().parent.parent
ARGUMENTS = ("--classes", "7", "--fold", "0", "--epochs", "3", "--limit", "2000", "--batch-size", "64")
ADDRESS = "127.0.0.1:47123"
# Name -> for each process the cores it may use and its environment.
ONE_THREAD = "--xla_cpu_multi_thread_eigen=false"
WAYS = {
    "one device": [({0}, {"XLA_FLAGS": ONE_THREAD})],
    "two virtual devices": [({0, 1}, {"XLA_FLAGS": f"{ONE_THREAD} --xla_force_host_platform_device_count=2"})],
    "two processes": [
        (
            {number},
            {
                "XLA_FLAGS": ONE_THREAD,
                "KERAS_DISTRIBUTION_JOB_ADDRESSES": ADDRESS,
                "KERAS_DISTRIBUTION_NUM_PROCESSES": "2",
                "KERAS_DISTRIBUTION_PROCESS_ID": str(number),
            },
        )
        for number in (0, 1)
    ],
}


def train(processes, folder):
    """Runs one training in its processes; returns its history."""
    command = [sys.executable, str(ROOT / "train.py"), *ARGUMENTS, "--output-dir", str(folder)]
    running = []
    for cores, variables in processes:
        environment = {**os.environ, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu", **variables}
        running.append(subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL))
        os.sched_setaffinity(running[-1].pid, cores)
    if any(process.wait() for process in running):
        sys.exit("A training failed.")
    return pd.read_csv(folder / "history.csv")


def main():
    result = {"date": datetime.date.today().isoformat(), "machine": f"{os.cpu_count()} cores, {platform.machine()}"}
    print("| devices | loss per epoch | seconds of the last epoch |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name, processes in WAYS.items():
            history = train(processes, Path(folder) / name.replace(" ", "-"))
            losses, seconds = history["loss"].round(5).tolist(), float(history["seconds"].iloc[-1])
            result[name] = {"losses": losses, "seconds_of_last_epoch": seconds}
            print(f"| {name} | {', '.join(map(str, losses))} | {seconds} |", flush=True)
    (ROOT / "figures" / "benchmark_devices.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
