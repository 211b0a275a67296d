"""The recipe: every number that decides how good a model becomes, with its reason or unit; used by train.py.

But for the epochs and the batch size, which are its flags.
"""

# Networks: (filters, convolutions, residual pairs of them) per stage; the picture is halved between stages. The small
# one is for use; the others, of about 5 million parameters, only teach it (`--fold`).
NETWORKS = {
    "small": ((24, 2, 0), (48, 2, 0), (96, 1, 1), (192, 2, 0)),
    "vgg": ((64, 2, 0), (128, 2, 0), (256, 2, 0), (512, 2, 0)),
    "resnet": ((48, 1, 1), (96, 1, 2), (192, 1, 2), (384, 1, 1)),
}
STAGE_DROPOUT = 0.1  # After every stage but the first, whole channels.
HEAD_DROPOUT = 0.3  # Before the dense layer.
BATCH_NORM_MOMENTUM = 0.9  # Keras's 0.99 lags: in a short run its statistics are still those of the first steps.

# Optimisation: stochastic gradient descent, the rate rising for WARMUP of all steps and falling to zero as a cosine.
PEAK_LEARNING_RATE = 0.1
WARMUP = 0.05
MOMENTUM = 0.9
WEIGHT_DECAY = 5e-3  # Keras multiplies it by the rate, outside the momentum: the usual 5e-4 over 1 - 0.9.
LABEL_SMOOTHING = 0.1
TEACHER_SMOOTHING = 0.0  # Of folds: smoothing hides which emotions a face is between (Müller et al., 2019).
SOFT_WEIGHT = 0.25  # Of a soft label beside the label, where there is one.

# Crops: (width in pixels, share of the run at which it ends). A crop at the face's own scale teaches as much as the
# whole face, at two thirds of the cost.
SIZES = ((40, 0.75), (48, 1.0))

# Augmentation, drawn anew for every face and epoch.
MAX_ROTATION = 10  # Degrees.
MAX_SCALE = 0.1  # Share of the face's size.
MAX_SHIFT = 0.1  # Share of the crop's size.
MAX_CONTRAST = 0.3  # Share of the distance of each pixel from mid-gray.
ERASING_PROBABILITY = 0.4
ERASING_SIDE = (0.15, 0.4)  # Share of the face's side.
