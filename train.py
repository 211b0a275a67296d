"""Trains the emotion CNN on FER2013 and writes a model folder.

    python train.py                                the default recipe: 5 classes, data/fer2013.csv
    python train.py --classes 7                    all seven emotions
    python train.py --epochs 12 --output-dir models/short          with the whole schedule scaled to it
    python train.py --resume                       goes on with a run that was stopped or killed
    python train.py --epochs 1 --limit 512 --output-dir models/smoke
    python train.py --network large --output-dir models/large-5    errs less, takes four times the operations
    python train.py --classes 7 --fold 0           one of the networks that teach: models/README.md

Fits on the Training split, keeps the epoch that is best on PublicTest, and never opens PrivateTest.
"""

import argparse
import contextlib
import datetime
import hashlib
import importlib
import json
import os
import platform
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

import distillation
import recipe
import utils

# TensorFlow greets with lines on stderr that nobody has to answer; our own would drown in them.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
stderr = os.dup(2)
try:
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    import keras

    import checkpoints
    import networks
finally:
    os.dup2(stderr, 2)
    os.close(stderr)

EPOCHS = {"small": 80, "large": 48}  # Two hours and a quarter at most on two cores.


class ShuffledFaces(keras.utils.PyDataset):
    """Batches of faces and targets, in an order fixed by the seed and the epoch; of each the part of one process."""

    def __init__(self, faces, targets, batch_size, seed, epoch, process=0, processes=1):
        # With one, Keras leaves the batches to tf.data, whose tuner keeps some epochs from ending for half a minute.
        super().__init__(workers=2)
        self.faces, self.targets, self.batch_size = faces, targets, batch_size
        self.seed, self.epoch, self.process, self.processes = seed, epoch, process, processes
        self.shuffle()

    def __len__(self):
        return len(self.faces) // self.batch_size  # The rest, under one batch, comes in another epoch's order.

    def __getitem__(self, index):
        rows = self.order[index * self.batch_size : (index + 1) * self.batch_size]
        rows = np.split(rows, self.processes)[self.process]
        return self.faces[rows], self.targets[rows]

    def shuffle(self):
        self.order = np.random.default_rng((self.seed, self.epoch)).permutation(len(self.faces))

    def on_epoch_end(self):
        self.epoch += 1
        self.shuffle()


def epoch_sizes(epochs):
    """Returns the width in pixels of the crops of each epoch, list of int."""
    return [next(size for size, end in recipe.SIZES if (epoch + 1) / epochs <= end) for epoch in range(epochs)]


def multiplies_bfloat16():
    """Tells whether the hardware multiplies bfloat16: half again as fast as float32 there, far slower elsewhere."""
    if "gpu" in list_devices()[0]:
        return gpu_generation() >= 8
    cpuinfo = Path("/proc/cpuinfo")  # Linux only: without it, float32 is always right.
    return keras.backend.backend() == "tensorflow" and cpuinfo.exists() and "avx512_bf16" in cpuinfo.read_text()


def gpu_generation():
    """Returns the first number of an NVIDIA GPU's compute capability, from 2020 on at least 8; of other makers', 8."""
    if keras.backend.backend() == "jax":
        import jax

        capability = str(getattr(jax.devices()[0], "compute_capability", "8.0")).split(".")[0]
        return int(capability) if capability.isdecimal() else 8
    import tensorflow as tf

    details = tf.config.experimental.get_device_details(tf.config.list_physical_devices("GPU")[0])
    return details.get("compute_capability", (8, 0))[0]


def list_devices():
    """Returns the names of the devices to train on: GPUs where there are any."""
    if keras.backend.backend() not in ("jax", "tensorflow"):  # Keras knows no others' devices.
        return ["cpu:0"]
    names = [name.lower() for name in keras.distribution.list_devices()]
    return [name for name in names if "gpu" in name] or names


@contextlib.contextmanager
def every_device():
    """Shares the batches of what is trained inside out over all devices, with Keras's own means.

    With JAX the devices may be those of several processes and hosts: each of them is started with Keras's variables
    KERAS_DISTRIBUTION_JOB_ADDRESSES, _NUM_PROCESSES and _PROCESS_ID. TensorFlow shares among the devices of one host.

    Yields:
        process, processes, devices: int each; the process counts from 0, the devices are those of all processes.
    """
    backend = keras.backend.backend()
    if backend == "jax" and "KERAS_DISTRIBUTION_JOB_ADDRESSES" in os.environ:
        keras.distribution.initialize()
    names = list_devices()
    if len(names) == 1:
        yield 0, 1, 1
    elif backend == "jax":
        import jax

        with keras.distribution.DataParallel(auto_shard_dataset=False).scope():
            yield jax.process_index(), jax.process_count(), len(names)
    else:
        import tensorflow as tf

        with tf.distribute.MirroredStrategy(names).scope():
            yield 0, 1, len(names)


def compile_model(model, steps):
    """Compiles for a run of `steps` batches."""
    warmup = int(steps * recipe.WARMUP)
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, steps - warmup, warmup_target=recipe.PEAK_LEARNING_RATE, warmup_steps=warmup
    )
    model.compile(
        keras.optimizers.SGD(schedule, momentum=recipe.MOMENTUM, nesterov=True, weight_decay=recipe.WEIGHT_DECAY),
        keras.losses.CategoricalCrossentropy(),
        metrics=["accuracy"],
        # On a CPU TensorFlow's own kernels beat XLA's, which draw the random numbers of dropout on one core.
        jit_compile=False if keras.backend.backend() == "tensorflow" else "auto",
    )


def make_targets(labels, num_classes, smoothing, soft_labels=None):
    """Smooths the labels, and mixes them with soft ones where there are any.

    Args:
        labels: int (N,).
        num_classes: 5 or 7.
        smoothing: share of each label that all classes get alike.
        soft_labels: what `distillation.load_soft_labels` returns for the same faces, or None.

    Returns:
        targets: float32 (N, num_classes), rows sum to 1.
    """
    one_hot = np.eye(num_classes, dtype=np.float32)[labels]
    hard = one_hot + smoothing * (1 / num_classes - one_hot)
    if soft_labels is None:
        return hard
    probabilities, share = soft_labels
    weight = recipe.SOFT_WEIGHT * share[:, np.newaxis]
    return (1 - weight) * hard + weight * probabilities


def train(
    data, num_classes, output_dir, epochs, batch_size=128, seed=0, limit=None, resume=False,
    network="small", fold=None, soft_labels=None,
):  # fmt: skip
    """Trains a model and writes its folder.

    Args:
        data: path of the data set, in any form that `utils.load_fer2013` reads.
        output_dir: the model folder, replaced as a whole at the end; the state lies beside it, in `<name>.partial`.
        epochs: length of the run; the learning rate's schedule and the crops' sizes scale with it.
        seed: fixes the initial weights, the order, the augmentation and the dropout.
        fold: 0..4 to write, instead of a model, what one trained without that fold of Training reads in it.
        soft_labels: path of the soft labels to learn from beside the labels, or None; not for folds.
        num_classes, batch_size, limit, resume, network: the options of these names.

    Returns:
        description: dict, the content of `model.json`; empty in a process that only helps another one.

    Raises:
        FileNotFoundError, ValueError: the data cannot be used, or the state belongs to another run.
        KeyboardInterrupt: after Ctrl-C, with the best epoch so far written, if it may be (`keep_best_so_far`).
    """
    output_dir = Path(output_dir).resolve()
    train_split, val_split = (utils.load_fer2013(data, split, num_classes, limit) for split in ("train", "val"))
    # A network that teaches must not have learned from others that have seen its fold.
    soft = read_soft_labels(soft_labels if fold is None else None, train_split[0], num_classes)
    settings = {
        "classes": num_classes, "epochs": epochs, "batch_size": batch_size, "seed": seed, "limit": limit,
        "network": network, "fold": fold, "soft_labels": file_hash(soft_labels) if soft else None,
    }  # fmt: skip
    settings = describe_settings(data, train_split, settings)
    train_split, held_out = (train_split, None) if fold is None else leave_out(fold, *train_split)
    if resume and not checkpoints.is_unfinished(output_dir):
        previous = checkpoints.read_description(output_dir)
        if checkpoints.is_finished(previous, settings):
            print("This training is finished.")
            return previous
        print("There is no unfinished training to go on with; starting anew.")
    targets = make_targets(train_split[1], num_classes, settings["recipe"]["LABEL_SMOOTHING"], soft)
    return fit_and_write(output_dir, settings, resume, train_split, targets, val_split, held_out)


def fit_and_write(output_dir, settings, resume, train_split, targets, val_split, held_out):
    """Runs a training to its end, or to Ctrl-C, and returns its description."""
    run = None
    try:
        with every_device() as (process, processes, devices):
            settings |= describe_machine()
            run = checkpoints.open_run(output_dir, settings, epoch_sizes(settings["epochs"]), resume, process > 0)
            with run.stops_between_batches():
                fit(run, train_split, targets, val_split, process, processes, devices)
    except KeyboardInterrupt:
        if run and held_out is None:
            keep_best_so_far(output_dir, run, train_split, val_split)
        raise
    # The first process writes; the others only help it.
    description = {} if run.follows else write_output(output_dir, run, train_split, val_split, held_out)
    checkpoints.close_run(run)
    if run.interrupted:  # After the last batch, where nothing was left to stop.
        raise KeyboardInterrupt
    return description


def keep_best_so_far(output_dir, run, train_split, val_split):
    """Writes the model of an interrupted run, unless there is one worth keeping, or none to write."""
    if not run.rows or keras.backend.backend() != "tensorflow":
        return
    reason = checkpoints.why_keep(output_dir, {**run.settings, **run.best_row()})
    if reason:
        print(f"The model in {output_dir} {reason}, so it stays.")
    else:
        write_output(output_dir, run, train_split, val_split, None)
        print(f"The best epoch so far is in {output_dir}.")


def read_soft_labels(path, faces, num_classes):
    """Returns what `distillation.load_soft_labels` does, None without a path or if they are of none of the faces."""
    if path is None:
        return None
    probabilities, share = distillation.load_soft_labels(path, faces, num_classes)
    print(f"{np.count_nonzero(share):,} of {len(faces):,} faces have a soft label.")
    return (probabilities, share) if share.any() else None


def leave_out(fold, faces, labels):
    """Splits Training into faces and labels to train on, and those of one fold.

    Raises:
        ValueError: one of the two is empty.
    """
    folds = distillation.assign_folds(faces, labels)
    if not 0 < np.count_nonzero(folds == fold) < len(folds):
        raise ValueError(f"Fold {fold} and the rest must hold faces each. Received: {len(folds)} faces in all.")
    return (faces[folds != fold], labels[folds != fold]), (faces[folds == fold], labels[folds == fold])


def file_hash(path):
    """Returns the SHA-256 of a file in hexadecimal digits."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def data_hash(faces, labels):
    """Returns the SHA-256 of faces and labels in hexadecimal digits."""
    return hashlib.sha256(faces.tobytes() + labels.astype("<i8").tobytes()).hexdigest()


def describe_settings(data, train_split, settings):
    """Returns all that decides how a run goes: the settings, where the data is and its hash, and its recipe."""
    path = Path(data).resolve()
    # Below the repository the place there, because `model.json` is for others to read.
    path = path.relative_to(utils.ROOT) if path.is_relative_to(utils.ROOT) else path
    numbers = {name: value for name, value in vars(recipe).items() if name.isupper()}
    numbers |= numbers.pop("NETWORKS")[settings["network"]]
    teacher_smoothing = numbers.pop("TEACHER_SMOOTHING")
    if settings["fold"] is not None:
        numbers |= {"LABEL_SMOOTHING": teacher_smoothing, "SOFT_WEIGHT": 0.0}
    settings = {"data": path.as_posix(), "data_sha256": data_hash(*train_split), **settings, "recipe": numbers}
    return json.loads(json.dumps(settings))  # Tuples become lists, as they will when they are read back.


def describe_machine():
    """Returns what a run's settings say of the machine that it begins on."""
    libraries = (importlib.import_module(keras.backend.backend()), keras, cv2, np)
    versions = {"python": platform.python_version()} | {lib.__name__: lib.__version__ for lib in libraries}
    return {"precision": "bfloat16" if multiplies_bfloat16() else "float32", "versions": versions}


def fit(run, train_split, targets, val_split, process=0, processes=1, devices=1):
    """Trains the epochs that the run does not have behind it, with one `model.fit` per crop size."""
    faces, settings, epochs = train_split[0], run.settings, len(run.sizes)
    batch_size = min(settings["batch_size"], len(faces))
    keras.utils.set_random_seed(settings["seed"])
    keras.config.set_dtype_policy("mixed_bfloat16" if settings["precision"] == "bfloat16" else "float32")
    if batch_size % devices:
        raise ValueError(f"A batch must be a multiple of the {devices} devices that share it. Received: {batch_size}.")
    # What does not fill all devices is left out of choosing the best epoch only.
    validation = (val_split[0], keras.utils.to_categorical(val_split[1], settings["classes"]))
    validation = [np.split(array[: len(array) // devices * devices], processes)[process] for array in validation]
    steps_per_epoch = len(faces) // batch_size
    model = networks.AugmentedModel(networks.build_model(settings["classes"], settings["network"], image_size=None))
    compile_model(model, steps_per_epoch * epochs)
    run.restore(model, steps_per_epoch)
    while len(run.rows) < epochs:
        done = len(run.rows)
        model.set_size(run.sizes[done])
        model.fit(
            ShuffledFaces(faces, targets, batch_size, settings["seed"], done, process, processes),
            validation_data=tuple(validation),
            validation_batch_size=256 // devices * devices,
            initial_epoch=done,
            epochs=done + run.sizes[done:].count(run.sizes[done]),
            callbacks=[run],
            shuffle=False,
            verbose=0 if process else 1 if sys.stdout.isatty() else 2,
        )


def write_output(output_dir, run, train_split, val_split, held_out):
    """Writes what a run is for into `output_dir`, which changes at once and only when all is complete.

    Args:
        held_out: faces and labels that the run was not trained on, whose readings are then written; None to write a
            model.

    Returns:
        description: dict, the content of `model.json`.
    """
    if held_out is None and not can_export():
        raise ValueError(
            "The export needs Keras on TensorFlow. The state is kept: repeat with KERAS_BACKEND=tensorflow, --resume."
        )
    keras.config.set_dtype_policy("float32")
    network = networks.build_model(run.settings["classes"], run.settings["network"])
    network.load_weights(run.folder / "best.weights.h5")
    if recipe.NETWORKS[run.settings["network"]]["MIRROR_SYMMETRIC"]:
        networks.make_mirror_symmetric(network)  # The statistics of batch normalisation are not yet.
    description = describe(network, run, train_split)
    with checkpoints.replaced_folder(output_dir) as folder:
        pd.DataFrame(run.rows).to_csv(folder / "history.csv", index=False)
        if held_out is None:
            write_model(folder, network, description, *val_split)
        else:
            write_readings(folder, network, description, val_split, held_out)
        write_description(folder, description)
        keep_better(output_dir, description)
    return description


def can_export():
    """Tells whether Keras can write `model.tflite` here."""
    return keras.backend.backend() == "tensorflow"


def write_description(folder, description):
    (folder / "model.json").write_text(json.dumps(description, indent=2), encoding="utf-8")


def keep_better(output_dir, description):
    """Sets the model that is there aside if it is better than the one described or has learned from other faces."""
    reason = checkpoints.why_keep(output_dir, description["training"])
    if reason:
        print(f"The model that was here {reason}, so it is kept: {checkpoints.set_aside(output_dir)}.")


def write_model(folder, network, description, faces, labels):
    """Calibrates and exports a network, and completes its description by the exported file's accuracy."""
    description["temperature"] = calibrate(network, faces, labels)
    network.save(folder / "model.keras")
    network.export(folder / "model.tflite", format="litert", verbose=False)
    description["tflite_sha256"] = file_hash(folder / "model.tflite")
    write_description(folder, description)  # Without it nothing is a model.
    # The figure that counts is that of the exported file, which is what evaluate.py scores and the demo runs.
    predicted = utils.load_emotion_model(folder).predict(faces).argmax(axis=1)
    description["training"]["val_accuracy"] = float(np.mean(predicted == labels))


def calibrate(network, faces, labels):
    """Divides the logits by the temperature at which the probabilities fit the labels best (Guo et al., 2017).

    The dense layer has no bias, so dividing its weights does it; no label changes.

    Returns:
        temperature: float; above 1 the network was too sure of itself.
    """
    logits = np.log(np.maximum(network.predict(faces, batch_size=256, verbose=0), 1e-30))
    temperatures, rows = np.geomspace(0.2, 5, 500), np.arange(len(labels))
    log_losses = [-np.log(softmax(logits / t)[rows, labels]).mean() for t in temperatures]
    temperature = float(temperatures[np.argmin(log_losses)])
    kernel = network.get_layer("probabilities").kernel
    kernel.assign(kernel / temperature)
    return temperature


def softmax(logits):
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def write_readings(folder, network, description, val_split, held_out):
    """Writes what a network reads in a fold left out and in PublicTest, and completes its description."""
    (faces, labels), (val_faces, val_labels) = held_out, val_split
    probabilities, val_probabilities = (predict_views(network, images) for images in (faces, val_faces))
    of_one_fold = ("data", "seed", "fold", "precision", "versions", "rows_per_class", "date", "seconds", "best_epoch")
    run = {name: value for name, value in description["training"].items() if name not in of_one_fold}
    np.savez_compressed(
        folder / "out_of_fold.npz",
        hashes=distillation.hash_faces(faces),
        probabilities=probabilities,
        val_probabilities=val_probabilities,
        val_labels=val_labels,
        run=json.dumps(run),  # The same in all folds that may be averaged.
    )
    description["training"] |= {
        "val_accuracy": float(np.mean(val_probabilities.argmax(axis=1) == val_labels)),
        "fold_accuracy": float(np.mean(probabilities.argmax(axis=1) == labels)),
    }


def predict_views(network, faces):
    """Returns the probabilities, float32 (N, C), averaged over five positions of each face and their mirror images."""
    edge = 2  # Pixels.
    padded = np.pad(faces, ((0, 0), (edge, edge), (edge, edge), (0, 0)), mode="edge")
    views = []
    for x, y in ((edge, edge), (0, edge), (2 * edge, edge), (edge, 0), (edge, 2 * edge)):
        view = padded[:, y : y + utils.IMAGE_SIZE, x : x + utils.IMAGE_SIZE]
        views += [network.predict(images, batch_size=256, verbose=0) for images in (view, view[:, :, ::-1])]
    return np.mean(views, axis=0)


def describe(network, run, train_split):
    """Returns the content of `model.json`, but for the temperature and the validation accuracy."""
    ids = utils.CLASS_SETS[run.settings["classes"]]
    classes = [utils.EMOTIONS[i] for i in ids]
    return {
        "classes": classes,
        "fer2013_ids": ids,
        "image_size": utils.IMAGE_SIZE,
        "parameters": network.count_params(),
        "macs": networks.count_macs(network),
        "training": {
            **run.settings,
            "rows_per_class": dict(
                zip(classes, np.bincount(train_split[1], minlength=len(classes)).tolist(), strict=True)
            ),
            "date": datetime.date.today().isoformat(),
            "seconds": round(run.seconds()),
            "epochs_done": len(run.rows),
            "best_epoch": run.best_row()["epoch"],
        },
    }


def describe_throughput(description):
    """Returns how fast a training was, also as a share of the machine's matrix product, which bounds it."""
    training = description["training"]
    images = sum(training["rows_per_class"].values()) * training["epochs_done"]
    sizes = np.array(epoch_sizes(training["epochs"])[: training["epochs_done"]])
    # Forward, and backward to the weights and to the inputs: 3 times a multiplication and an addition.
    operations = 6 * description["macs"] * images * np.mean(np.square(sizes / utils.IMAGE_SIZE))
    seconds = max(training["seconds"], 1)
    speed = operations / seconds / 1e9
    return (
        f"{images / seconds:.0f} images a second, {speed:.0f} GFLOP/s: {speed / measure_product():.0%} of "
        "what this machine's float32 matrix product gives now."
    )


def measure_product(size=2048):
    """Returns the GFLOP/s of the product of two square float32 matrices, the best of ten."""
    matrix, seconds = keras.random.uniform((size, size), seed=0), []
    for _ in range(10):
        started = time.perf_counter()
        keras.ops.convert_to_numpy(keras.ops.matmul(matrix, matrix)[0, 0])  # Waits for the result.
        seconds.append(time.perf_counter() - started)
    return 2 * size**3 / min(seconds) / 1e9


def positive_integer(text):
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1. Received: {text}.")
    return int(text)


def seed_number(text):
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 to {2**32 - 1}. Received: {text}.")
    return int(text)


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        usage=argparse.SUPPRESS, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=utils.DEFAULT_DATA, help="data set (default: data/fer2013.csv)")
    parser.add_argument("--classes", type=int, choices=utils.CLASS_SETS, default=5, help="emotions (default: 5)")
    parser.add_argument("--output-dir", type=Path, help="model folder (default: models/emotions-<classes>)")
    parser.add_argument(
        "--epochs", type=positive_integer, help="length of the run (default: 80; 48 of the large network)"
    )
    parser.add_argument("--batch-size", type=positive_integer, default=128, help="faces per step (default: 128)")
    parser.add_argument("--seed", type=seed_number, default=0, help="of everything random (default: 0)")
    parser.add_argument("--limit", type=positive_integer, help="use only the first LIMIT faces of each split")
    parser.add_argument("--resume", action="store_true", help="go on with a run that was stopped or killed")
    parser.add_argument("--no-soft-labels", action="store_true", help="learn from the labels only")
    parser.add_argument("--network", choices=recipe.NETWORKS, default="small", help="small or large (default: small)")
    parser.add_argument(
        "--fold",
        type=int,
        choices=range(distillation.FOLDS),
        help="leave a fifth of Training out, write what is read in it",
    )
    args = parser.parse_args(argv)
    if args.fold is not None and args.classes != 7:
        parser.error("--fold needs --classes 7: soft labels are of all emotions.")
    name = f"emotions-{args.classes}" if args.fold is None else f"folds/{args.network}-{args.classes}-{args.fold}"
    args.output_dir = args.output_dir or utils.ROOT / "models" / name
    args.epochs = args.epochs or EPOCHS[args.network]
    with_soft_labels = distillation.DEFAULT_PATH.exists() and not args.no_soft_labels
    args.soft_labels = distillation.DEFAULT_PATH if with_soft_labels else None
    return args


def main(argv=None):
    args = parse_args(argv)
    utils.make_any_name_printable()
    try:
        description = train(
            args.data, args.classes, args.output_dir, args.epochs, args.batch_size, args.seed, args.limit, args.resume,
            args.network, args.fold, args.soft_labels,
        )  # fmt: skip
    except (OSError, ValueError) as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Stopped. To go on, repeat the command with --resume.", file=sys.stderr)
        return 130
    if not description:  # Another process writes the model.
        return 0
    training = description["training"]
    print(
        f"Validation accuracy {training['val_accuracy']:.4f} (PublicTest, epoch {training['best_epoch']}). "
        f"{describe_throughput(description)}"
    )
    if args.fold is None:
        print(
            f"The model is in {args.output_dir}.\n"
            f"Next: python evaluate.py --data {args.data} --model {args.output_dir} --split val"
        )
    else:
        print(
            f"Accuracy in fold {args.fold}, which it has not seen: {training['fold_accuracy']:.4f}. "
            f"What it reads there is in {args.output_dir}.\nNext: python data/make_soft_labels.py"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
