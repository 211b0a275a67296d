"""Trains the emotion CNN on FER2013 and writes a model folder.

    python train.py                                the default recipe: 5 classes, data/fer2013.csv
    python train.py --classes 7                    all seven emotions
    python train.py --epochs 12 --output-dir models/short          with the whole schedule scaled to it
    python train.py --resume                       goes on with a run that was stopped or killed
    python train.py --epochs 1 --limit 512 --output-dir models/smoke
    python train.py --classes 7 --network vgg --fold 0             one of the networks that teach: models/README.md

Fits on the Training split, keeps the epoch that is best on PublicTest, and never opens PrivateTest.
"""

import argparse
import contextlib
import datetime
import hashlib
import importlib
import importlib.util
import json
import os
import platform
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from sklearn import metrics

import distillation
import utils

# TensorFlow greets with lines on stderr that nobody has to answer; our own would drown in them.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
stderr = os.dup(2)
try:
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    import keras
    from keras import layers, ops

    import checkpoints
finally:
    os.dup2(stderr, 2)
    os.close(stderr)

# ---------------------------------------------------------------------------------------------------------------------
# The recipe
# ---------------------------------------------------------------------------------------------------------------------

# Networks: (filters, convolutions, residual pairs of them) per stage; the picture is halved between stages. The small
# one is for use; the others, of about 5 million parameters, only teach it (`--fold`).
NETWORKS = {
    "small": ((24, 2, 0), (48, 2, 0), (96, 1, 1), (192, 2, 0)),
    "vgg": ((64, 2, 0), (128, 2, 0), (256, 2, 0), (512, 2, 0)),
    "resnet": ((48, 1, 1), (96, 1, 2), (192, 1, 2), (384, 1, 1)),
}
STAGE_DROPOUT = 0.05  # After every stage but the first, whole channels.
HEAD_DROPOUT = 0.3  # Before the dense layer.
BATCH_NORM_MOMENTUM = 0.9  # Keras's 0.99 lags: in a short run its statistics are still those of the first steps.

# Optimisation: stochastic gradient descent, the rate rising for WARMUP of all steps and falling to zero as a cosine.
PEAK_LEARNING_RATE = 0.1
WARMUP = 0.1
MOMENTUM = 0.9
WEIGHT_DECAY = 5e-4
LABEL_SMOOTHING = 0.1
SOFT_WEIGHT = 0.5  # Of a soft label beside the label, where there is one.

# Progressive resizing: (width in pixels, share of the run at which it ends). Small pictures cost half and teach nearly
# as much.
SIZES = ((36, 0.6), (48, 1.0))

# Augmentation, drawn anew for every face and epoch.
MAX_ROTATION = 10  # Degrees.
MAX_SCALE = 0.1  # Share of the face's size.
MAX_SHIFT = 0.08  # Share of the face's size.
MAX_CONTRAST = 0.3  # Share of the distance of each pixel from mid-gray.
ERASING_PROBABILITY = 0.3
ERASING_SIDE = (0.15, 0.4)  # Share of the face's side.

# ---------------------------------------------------------------------------------------------------------------------
# The network
# ---------------------------------------------------------------------------------------------------------------------


def conv_block(x, filters):
    """Convolution, batch normalisation, ReLU."""
    x = layers.Conv2D(filters, 3, padding="same", use_bias=False, kernel_initializer="he_normal")(x)
    x = layers.BatchNormalization(momentum=BATCH_NORM_MOMENTUM)(x)
    return layers.ReLU()(x)


def build_model(num_classes, network="small", image_size=utils.IMAGE_SIZE):
    """Builds the CNN.

    Args:
        num_classes: width of the softmax output.
        network: a name in `NETWORKS`.
        image_size: width and height of the input in pixels; None takes any size, which only training needs.

    Returns:
        model: `keras.Model` from faces (N, size, size, 1), 0..255, to probabilities (N, num_classes).
    """
    faces = keras.Input((image_size, image_size, 1), name="faces")
    x = layers.Rescaling(1 / 127.5, offset=-1.0)(faces)
    for stage, (filters, convolutions, pairs) in enumerate(NETWORKS[network]):
        if stage > 0:
            x = layers.MaxPooling2D()(x)  # 48 -> 24 -> 12 -> 6
        for _ in range(convolutions):
            x = conv_block(x, filters)
        for _ in range(pairs):
            x = layers.Add()([x, conv_block(conv_block(x, filters), filters)])
        if stage > 0:
            x = layers.SpatialDropout2D(STAGE_DROPOUT)(x)
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.Dropout(HEAD_DROPOUT)(x)
    # Without a bias, because OpenCV's importer would leave it out. In float32 under mixed precision too, because a
    # softmax in bfloat16 rounds probabilities to two digits.
    dense = layers.Dense(num_classes, activation="softmax", use_bias=False, dtype="float32", name="probabilities")
    return keras.Model(faces, dense(x), name=f"emotions_{num_classes}")


def count_macs(model):
    """Counts the multiply-adds of one face's forward pass in convolutions and dense layers; the rest is under 2 %."""
    macs = 0
    for layer in model.layers:
        if isinstance(layer, layers.Conv2D):
            _, height, width, _ = layer.compute_output_shape(layer.input.shape)
            macs += height * width * int(np.prod(layer.kernel.shape))
        elif isinstance(layer, layers.Dense):
            macs += int(np.prod(layer.kernel.shape))
    return macs


# ---------------------------------------------------------------------------------------------------------------------
# Augmentation
# ---------------------------------------------------------------------------------------------------------------------


class Augmentation(layers.Layer):
    """Flips, turns, scales, shifts, changes the contrast and erases a rectangle of each face, where the network trains.

    Attributes:
        size: width and height in pixels of the augmented faces; resizing is part of the same interpolation. In
            inference faces pass as they are.
    """

    def __init__(self):
        super().__init__(dtype="float32")  # Under mixed precision too: coordinates need more than 8 bits.
        self.size = utils.IMAGE_SIZE
        self.seed_generator = keras.random.SeedGenerator(0)

    def call(self, faces, training=False):
        return self.erase(self.change_contrast(self.warp(faces))) if training else faces

    def uniform(self, low, high, *shape):
        return keras.random.uniform(shape, low, high, seed=self.seed_generator)

    def warp(self, faces):
        """Takes each pixel of the result from where the inverse of flip, rotation, scale and shift puts it."""
        count = ops.shape(faces)[0]
        flip = ops.sign(self.uniform(-1, 1, count))
        angle = np.deg2rad(MAX_ROTATION) * self.uniform(-1, 1, count)
        scale = utils.IMAGE_SIZE / self.size / (1 + self.uniform(-MAX_SCALE, MAX_SCALE, count))
        cos, sin = scale * ops.cos(angle), scale * ops.sin(angle)
        # The middle of the face lands in the middle of the result, moved by the shift.
        x, y = ((self.size - 1) / 2 + self.size * self.uniform(-MAX_SHIFT, MAX_SHIFT, count) for _ in "xy")
        middle, zero = (utils.IMAGE_SIZE - 1) / 2, ops.zeros_like(x)
        to_x = (flip * cos, -flip * sin, middle - flip * (cos * x - sin * y))
        to_y = (sin, cos, middle - sin * x - cos * y)
        matrices = ops.stack([*to_x, *to_y, zero, zero], axis=1)
        warped = ops.image.affine_transform(
            faces, matrices, interpolation="bilinear", fill_mode="nearest", data_format="channels_last"
        )
        return warped[:, : self.size, : self.size]

    def change_contrast(self, faces):
        gain = 1 + self.uniform(-MAX_CONTRAST, MAX_CONTRAST, ops.shape(faces)[0], 1, 1, 1)
        return ops.clip(128 + gain * (faces - 128), 0, 255)

    def erase(self, faces):
        """Puts noise into a rectangle of some faces (Zhong et al., 2020)."""
        count = ops.shape(faces)[0]
        width, height = (self.uniform(*ERASING_SIDE, count, 1, 1, 1) for _ in "xy")
        left, top = ((1 - side) * self.uniform(0, 1, count, 1, 1, 1) for side in (width, height))
        pixel = (ops.arange(self.size, dtype="float32") + 0.5) / self.size
        x, y = ops.reshape(pixel, (1, 1, -1, 1)), ops.reshape(pixel, (1, -1, 1, 1))
        inside = (ops.abs(x - left - width / 2) < width / 2) & (ops.abs(y - top - height / 2) < height / 2)
        chosen = self.uniform(0, 1, count, 1, 1, 1) < ERASING_PROBABILITY
        return ops.where(inside & chosen, self.uniform(0, 255, *ops.shape(faces)), faces)


class AugmentedModel(keras.Model):
    """The network behind its augmentation: what is trained, while the network alone is kept."""

    def __init__(self, network):
        faces, augmentation = keras.Input((utils.IMAGE_SIZE, utils.IMAGE_SIZE, 1)), Augmentation()
        super().__init__(faces, network(augmentation(faces)))
        self.augmentation, self.network = augmentation, network

    def set_size(self, size):
        """Goes on with training pictures of another width."""
        self.augmentation.size = size
        self.train_function = None  # The compiled one is for the old width; `fit` makes another.

    def seed_epoch(self, seed, epoch):
        """Fixes what is random in an epoch: the state of dropout and augmentation is not among the saved weights."""
        for number, layer in enumerate([self.augmentation, *self.network.layers]):
            if hasattr(layer, "seed_generator"):
                layer.seed_generator.state.assign([(1000 * seed + number) % 2**32, 1_000_000 * epoch])


class ShuffledFaces(keras.utils.PyDataset):
    """Batches of faces and targets, in an order fixed by the seed and the epoch; of each the part of one process."""

    def __init__(self, faces, targets, batch_size, seed, epoch, process=0, processes=1):
        super().__init__(workers=1)
        self.faces, self.targets, self.batch_size = faces, targets, batch_size
        self.seed, self.epoch, self.process, self.processes = seed, epoch, process, processes

    def __len__(self):
        return len(self.faces) // self.batch_size  # The rest, under one batch, comes in another epoch's order.

    def __getitem__(self, index):
        order = np.random.default_rng((self.seed, self.epoch)).permutation(len(self.faces))
        rows = order[index * self.batch_size : (index + 1) * self.batch_size]
        rows = np.split(rows, self.processes)[self.process]
        return self.faces[rows], self.targets[rows]

    def on_epoch_end(self):
        self.epoch += 1


# ---------------------------------------------------------------------------------------------------------------------
# Training
# ---------------------------------------------------------------------------------------------------------------------


def epoch_sizes(epochs):
    """Returns the width in pixels of the pictures of each epoch, list of int."""
    return [next(size for size, end in SIZES if (epoch + 1) / epochs <= end) for epoch in range(epochs)]


def multiplies_bfloat16():
    """Tells whether the hardware multiplies bfloat16: half again as fast as float32 there, far slower elsewhere."""
    if any("gpu" in device.lower() for device in keras.distribution.list_devices()):
        return True
    cpuinfo = Path("/proc/cpuinfo")  # Linux only: without it, float32 is always right.
    return keras.backend.backend() == "tensorflow" and cpuinfo.exists() and "avx512_bf16" in cpuinfo.read_text()


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
    names = keras.distribution.list_devices()
    names = [name for name in names if "gpu" in name.lower()] or names
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
    warmup = int(steps * WARMUP)
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, steps - warmup, warmup_target=PEAK_LEARNING_RATE, warmup_steps=warmup
    )
    model.compile(
        keras.optimizers.SGD(schedule, momentum=MOMENTUM, nesterov=True, weight_decay=WEIGHT_DECAY),
        keras.losses.CategoricalCrossentropy(),
        metrics=["accuracy"],
        # On a CPU TensorFlow's own kernels beat XLA's, which draw the random numbers of dropout on one core.
        jit_compile=False if keras.backend.backend() == "tensorflow" else "auto",
    )


def make_targets(faces, labels, num_classes, soft_labels):
    """Mixes the smoothed labels with soft ones where there are any.

    Args:
        faces: uint8 (N, 48, 48, 1).
        labels: int (N,).
        num_classes: 5 or 7.
        soft_labels: path of the file, or None to do without.

    Returns:
        targets: float32 (N, num_classes), rows sum to 1.
    """
    hard = (1 - LABEL_SMOOTHING) * np.eye(num_classes, dtype=np.float32)[labels] + LABEL_SMOOTHING / num_classes
    if soft_labels is None:
        return hard
    probabilities, known = distillation.load_soft_labels(soft_labels, faces, num_classes)
    print(f"{known.sum():,} of {len(faces):,} faces have a soft label.")
    return np.where(known[:, np.newaxis], (1 - SOFT_WEIGHT) * hard + SOFT_WEIGHT * probabilities, hard)


def train(
    data, num_classes, output_dir, epochs, batch_size=128, seed=0, limit=None, resume=False,
    network="small", fold=None, soft_labels=None,
):  # fmt: skip
    """Trains a model and writes its folder.

    Args:
        data: path of the data set, in any form that `utils.load_fer2013` reads.
        num_classes: 5 or 7.
        output_dir: the model folder, replaced as a whole at the end; the state lies beside it, in `<name>.partial`.
        epochs: length of the run; the learning rate's schedule and the picture sizes scale with it.
        batch_size: faces per step.
        seed: fixes the initial weights, the order, the augmentation and the dropout.
        limit: use only the first `limit` faces of each split.
        resume: go on with the run whose state is there; where there is none, begin one.
        network: a name in `NETWORKS`.
        fold: 0..4 to train without that fold of Training and to write what the network reads in it, instead of a model.
        soft_labels: path of the soft labels to learn from beside the labels, or None.

    Returns:
        description: dict, the content of `model.json`; empty in a process that only helps another one.

    Raises:
        FileNotFoundError, ValueError: the data cannot be used, or the state belongs to another run.
        KeyboardInterrupt: after Ctrl-C, with the best epoch so far written, unless `output_dir` has a better model.
    """
    train_split, val_split = (utils.load_fer2013(data, split, num_classes, limit) for split in ("train", "val"))
    settings = {"classes": num_classes, "epochs": epochs, "batch_size": batch_size, "seed": seed, "limit": limit}
    settings |= {"network": network, "fold": fold, "soft_labels": soft_labels and file_hash(soft_labels)}
    settings = describe_settings(data, train_split, settings)
    held_out = None
    if fold is not None:
        folds = distillation.assign_folds(*train_split)
        held_out = train_split[0][folds == fold]
        train_split = tuple(array[folds != fold] for array in train_split)
    output_dir = Path(output_dir).resolve()
    finished = checkpoints.read_description(output_dir)
    if resume and not checkpoints.is_unfinished(output_dir):
        if settings.items() <= finished.get("training", {}).items():
            print("This training is finished.")
            return finished
        print("There is no unfinished training to go on with; starting anew.")
    targets, run = make_targets(*train_split, num_classes, soft_labels), None
    try:
        with every_device() as (process, processes, devices):
            run = checkpoints.open_run(output_dir, settings, epoch_sizes(epochs), resume, process > 0)
            keras.utils.set_random_seed(seed)
            keras.config.set_dtype_policy("mixed_bfloat16" if multiplies_bfloat16() else "float32")
            fit(run, train_split, targets, val_split, process, processes, devices)
    except KeyboardInterrupt:
        writes = run and run.rows and not run.follows and held_out is None
        if writes and run.best_row()["val_accuracy"] > finished.get("training", {}).get("val_accuracy", 0.0):
            write_model(output_dir, run, train_split, val_split)
        raise
    if run.follows:
        checkpoints.close_run(run)
        return {}
    if held_out is None:
        description = write_model(output_dir, run, train_split, val_split)
    else:
        description = write_fold(output_dir, run, train_split, val_split, held_out)
    checkpoints.close_run(run)
    return description


def file_hash(path):
    """Returns the SHA-256 of a file in hexadecimal digits."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def describe_settings(data, train_split, settings):
    """Returns all that decides how a run goes: the settings, where the data is and its hash, and the recipe."""
    path, (faces, labels) = Path(data).resolve(), train_split
    # Below the repository the place there, because `model.json` is for others to read.
    path = path.relative_to(utils.ROOT) if path.is_relative_to(utils.ROOT) else path
    sha256 = hashlib.sha256(faces.tobytes() + labels.astype("<i8").tobytes()).hexdigest()
    recipe = {name: value for name, value in globals().items() if name.isupper() and name != "NETWORKS"}
    recipe["STAGES"] = NETWORKS[settings["network"]]
    settings = {"data": path.as_posix(), "data_sha256": sha256, **settings, "recipe": recipe}
    return json.loads(json.dumps(settings))  # Tuples become lists, as they will when they are read back.


def fit(run, train_split, targets, val_split, process=0, processes=1, devices=1):
    """Trains the epochs that the run does not have behind it, with one `model.fit` per picture size."""
    faces, settings, epochs = train_split[0], run.settings, len(run.sizes)
    batch_size = min(settings["batch_size"], len(faces))
    if batch_size % devices:
        raise ValueError(f"A batch must be a multiple of the {devices} devices that share it. Received: {batch_size}.")
    # What does not fill all devices is left out of choosing the best epoch only.
    validation = (val_split[0], keras.utils.to_categorical(val_split[1], settings["classes"]))
    validation = [np.split(array[: len(array) // devices * devices], processes)[process] for array in validation]
    steps_per_epoch = len(faces) // batch_size
    model = AugmentedModel(build_model(settings["classes"], settings["network"], image_size=None))
    compile_model(model, steps_per_epoch * epochs)
    run.restore(model, steps_per_epoch)
    while len(run.rows) < epochs:
        done = len(run.rows)
        model.set_size(run.sizes[done])
        model.fit(
            ShuffledFaces(faces, targets, batch_size, settings["seed"], done, process, processes),
            validation_data=tuple(validation),
            validation_batch_size=256,
            initial_epoch=done,
            epochs=done + run.sizes[done:].count(run.sizes[done]),
            callbacks=[run],
            shuffle=False,
            verbose=0 if process else 1 if sys.stdout.isatty() else 2,
        )


def best_network(run):
    """Returns the network of a run's best epoch, in float32."""
    keras.config.set_dtype_policy("float32")
    network = build_model(run.settings["classes"], run.settings["network"])
    network.load_weights(run.folder / "best.weights.h5")
    return network


def write_model(output_dir, run, train_split, val_split):
    """Calibrates and exports the best epoch into `output_dir`, which changes at once and only when all is complete.

    Returns:
        description: dict, the content of `model.json`.
    """
    if importlib.util.find_spec("tensorflow") is None:
        raise ValueError("The export needs TensorFlow. The state is kept: install it and repeat with --resume.")
    network = best_network(run)
    temperature = calibrate(network, *val_split)
    with checkpoints.replaced_folder(output_dir) as folder:
        network.save(folder / "model.keras")
        network.export(folder / "model.tflite", format="litert", verbose=False)
        pd.DataFrame(run.rows).to_csv(folder / "history.csv", index=False)
        description = describe(network, run, train_split) | {"temperature": temperature}
        (folder / "model.json").write_text(json.dumps(description, indent=2), encoding="utf-8")
        # The figure that counts is that of the exported file, which is what evaluate.py scores and the demo runs.
        predicted = utils.load_emotion_model(folder).predict(val_split[0]).argmax(axis=1)
        description["training"]["val_accuracy"] = float(np.mean(predicted == val_split[1]))
        (folder / "model.json").write_text(json.dumps(description, indent=2), encoding="utf-8")
    return description


def calibrate(network, faces, labels):
    """Divides the logits by the temperature at which the probabilities fit the labels best (Guo et al., 2017).

    The dense layer has no bias, so dividing its weights does it; no label changes.

    Returns:
        temperature: float; above 1 the network was too sure of itself.
    """
    logits = np.log(np.maximum(network.predict(faces, batch_size=256, verbose=0), 1e-30))
    temperatures = np.geomspace(0.2, 5, 500)
    losses = [metrics.log_loss(labels, softmax(logits / t), labels=range(logits.shape[1])) for t in temperatures]
    temperature = float(temperatures[np.argmin(losses)])
    kernel = network.get_layer("probabilities").kernel
    kernel.assign(kernel / temperature)
    return temperature


def softmax(logits):
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def write_fold(output_dir, run, train_split, val_split, held_out):
    """Writes what the best epoch reads in the fold that it was not trained on, and in PublicTest.

    Returns:
        description: dict, the content of `model.json`.
    """
    network = best_network(run)
    probabilities, val_probabilities = (predict_views(network, faces) for faces in (held_out, val_split[0]))
    with checkpoints.replaced_folder(output_dir) as folder:
        np.savez_compressed(
            folder / "out_of_fold.npz",
            hashes=distillation.hash_faces(held_out),
            probabilities=probabilities,
            val_probabilities=val_probabilities,
            val_labels=val_split[1],
        )
        pd.DataFrame(run.rows).to_csv(folder / "history.csv", index=False)
        description = describe(network, run, train_split)
        description["training"]["val_accuracy"] = float(np.mean(val_probabilities.argmax(axis=1) == val_split[1]))
        (folder / "model.json").write_text(json.dumps(description, indent=2), encoding="utf-8")
    return description


def predict_views(network, faces):
    """Returns the probabilities, float32 (N, C), averaged over five positions of each face and their mirror images."""
    edge = 2  # Pixels.
    padded = np.pad(faces, ((0, 0), (edge, edge), (edge, edge), (0, 0)), mode="edge")
    views = []
    for x, y in ((edge, edge), (0, edge), (2 * edge, edge), (edge, 0), (edge, 2 * edge)):
        view = padded[:, y : y + utils.IMAGE_SIZE, x : x + utils.IMAGE_SIZE]
        views += [network.predict(faces, batch_size=256, verbose=0) for faces in (view, view[:, :, ::-1])]
    return np.mean(views, axis=0)


def describe(network, run, train_split):
    """Returns the content of `model.json`, but for the temperature and the validation accuracy."""
    ids = utils.CLASS_SETS[run.settings["classes"]]
    classes = [utils.EMOTIONS[i] for i in ids]
    libraries = (importlib.import_module(keras.backend.backend()), keras, cv2, np)
    return {
        "classes": classes,
        "fer2013_ids": ids,
        "image_size": utils.IMAGE_SIZE,
        "parameters": network.count_params(),
        "macs": count_macs(network),
        "training": {
            **run.settings,
            "precision": "bfloat16" if multiplies_bfloat16() else "float32",
            "rows_per_class": dict(
                zip(classes, np.bincount(train_split[1], minlength=len(classes)).tolist(), strict=True)
            ),
            "versions": {"python": platform.python_version()} | {lib.__name__: lib.__version__ for lib in libraries},
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
    speed = operations / training["seconds"] / 1e9
    return (
        f"{images / training['seconds']:.0f} images a second, {speed:.0f} GFLOP/s: {speed / measure_product():.0%} of "
        "what this machine's float32 matrix product gives now."
    )


def measure_product(size=2048):
    """Returns the GFLOP/s of the product of two square float32 matrices, the best of ten."""
    matrix, seconds = keras.random.uniform((size, size), seed=0), []
    for _ in range(10):
        started = time.perf_counter()
        keras.ops.convert_to_numpy(ops.matmul(matrix, matrix)[0, 0])  # Waits for the result.
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
    parser.add_argument("--epochs", type=positive_integer, default=36, help="length of the run (default: 36)")
    parser.add_argument("--batch-size", type=positive_integer, default=128, help="faces per step (default: 128)")
    parser.add_argument("--seed", type=seed_number, default=0, help="of everything random (default: 0)")
    parser.add_argument("--limit", type=positive_integer, help="use only the first LIMIT faces of each split")
    parser.add_argument("--resume", action="store_true", help="go on with a run that was stopped or killed")
    parser.add_argument("--no-soft-labels", action="store_true", help="learn from the labels only")
    parser.add_argument("--network", choices=NETWORKS, default="small", help="with --fold: a teacher (default: small)")
    parser.add_argument(
        "--fold",
        type=int,
        choices=range(distillation.FOLDS),
        help="leave a fifth of Training out, write what is read in it",
    )
    args = parser.parse_args(argv)
    name = f"emotions-{args.classes}" if args.fold is None else f"folds/{args.network}-{args.classes}-{args.fold}"
    args.output_dir = args.output_dir or utils.ROOT / "models" / name
    # A network that teaches must not have learned from others that have seen its fold.
    with_soft_labels = distillation.DEFAULT_PATH.exists() and not args.no_soft_labels and args.fold is None
    args.soft_labels = distillation.DEFAULT_PATH if with_soft_labels else None
    return args


def main(argv=None):
    args = parse_args(argv)
    try:
        description = train(
            args.data, args.classes, args.output_dir, args.epochs, args.batch_size, args.seed, args.limit, args.resume,
            args.network, args.fold, args.soft_labels,
        )  # fmt: skip
    except (OSError, ValueError) as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            f"Stopped. {args.output_dir} has the best epoch so far or a better model. To go on: --resume",
            file=sys.stderr,
        )
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
        print(f"What it reads in fold {args.fold} is in {args.output_dir}.\nNext: python data/make_soft_labels.py")
    return 0


if __name__ == "__main__":
    sys.exit(main())
