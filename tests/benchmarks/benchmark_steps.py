"""Times a training step of 128 faces, and from it a run of train.py, on this processor and on one with AVX2 only.

    python tests/benchmarks/benchmark_steps.py   two minutes with nothing else running

For the second, oneDNN is held to AVX2 instructions, and the precision is float32, as on most computers. Prints hours
for both sets of classes, without the validation after each epoch. Writes figures/benchmark_steps.json.
"""

import datetime
import json
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import keras
import numpy as np
from benchmark_demo import processor

import cnn
import train
import utils

BATCH_SIZE, STEPS = 128, 40
FACES = {5: 24_176, 7: 28_709}  # FER2013's Training faces.
AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2"}


def measure(precision):
    """Returns the seconds of a step at each crop size, dict."""
    keras.config.set_dtype_policy(precision)
    random = np.random.default_rng(0)
    faces = random.integers(0, 256, (BATCH_SIZE * STEPS, utils.IMAGE_SIZE, utils.IMAGE_SIZE, 1), np.uint8)
    targets = {head: np.eye(5, dtype=np.float32)[random.integers(0, 5, len(faces))] for head in utils.HEADS}
    weights = {head: np.ones(len(faces), np.float32) for head in utils.HEADS}
    model = cnn.AugmentedModel(cnn.build_model(5, utils.HEADS, image_size=None))
    train.compile_model(model, utils.HEADS, STEPS)
    seconds = {}
    for size, _ in train.CROP_SIZES:
        model.set_size(size)
        for _ in range(2):  # The first one compiles.
            batches = train.ShuffledFaces(faces, targets, weights, BATCH_SIZE, seed=0, epoch=0)
            started = time.perf_counter()
            model.fit(batches, verbose=0, shuffle=False)
            seconds[size] = round((time.perf_counter() - started) / STEPS, 3)
    return seconds


def hours(seconds, num_classes):
    """Returns the hours of a run of train.py with these seconds a step."""
    sizes = train.list_crop_sizes(train.parse_args([]).epochs)
    return round(sum(seconds[str(size)] for size in sizes) * (FACES[num_classes] // BATCH_SIZE) / 3600, 1)


def main():
    if len(sys.argv) > 1:
        print(json.dumps(measure(sys.argv[1])))
        return
    result = {"date": datetime.date.today().isoformat(), "processor": processor(), "cores": os.cpu_count()}
    for name, precision, settings in (("own", train.choose_precision(), {}), ("AVX2", "float32", AVX2)):
        command = [sys.executable, __file__, precision]
        finished = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True, check=True)
        seconds = json.loads(finished.stdout.splitlines()[-1])
        result[name] = {"precision": precision, "seconds": seconds, "hours": {n: hours(seconds, n) for n in FACES}}
        print(name, result[name])
    (ROOT / "figures" / "benchmark_steps.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
