"""The sections of a recipe: plain dataclasses that a YAML file or the command line fills."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass
class DataConfig:
    """Where the images come from and how they are fed.

    Args:
        source: "mnist" (5,000 digits, offline), a folder of parquet files, a folder of images in
            one sub-folder per class, or the id of a data set on the Hugging Face hub.
        batch_size: Images of a batch, all processes together; a multiple of their number. An
            optimizer step uses `trainer.accumulate` batches.
        augment: Random changes of the training images: "none", "crop" (zero padding of 1/8 of the
            side, then a crop of the old size), "crop_flip" (the same and a mirror image half of
            the time), or "resized_crop_flip" (a random part resized to `image_size`: large images).
        image_size: Height and width fed to the net; null keeps the images' own size.
        mean: Per-channel mean of the pixels in 0..1; null measures the training images.
        std: Per-channel standard deviation of the pixels in 0..1; null measures them.
        image_column: Column of the images; null looks for img, image, pixel_values, png or jpg.
        label_column: Column of the labels; null looks for label, labels, fine_label, target or cls.
        num_classes: Number of classes; null takes it from the data.
        val_split: Split that measures accuracy; null takes validation, else test, else a part
            of the training images.
        val_fraction: That part, where the source has a training split only.
        workers: Processes that decode images; null chooses (0 where the images fit in memory).
        cache_mb: Decoded images are kept in memory up to this size, in MiB.
        device_cache: Keep decoded images on the device that trains and make the batches there, the
            same bit for bit: true, false, or "auto": on a CUDA device that has room for them.
        eval_batch_size: Images per validation batch; null: `batch_size`.
        streaming: Read the training images from parquet files as they are needed, without a copy on
            the disk; what is validated on is opened as ever.
        shuffle_buffer: Images that each worker of a stream holds and draws from at random.
    """

    source: str = "mnist"
    batch_size: int = 128
    augment: Literal["none", "crop", "crop_flip", "resized_crop_flip"] = "none"
    image_size: int | None = None
    mean: list[float] | None = None
    std: list[float] | None = None
    image_column: str | None = None
    label_column: str | None = None
    num_classes: int | None = None
    val_split: str | None = None
    val_fraction: float = 0.2
    workers: int | None = None
    cache_mb: int = 1024
    device_cache: bool | Literal["auto"] = "auto"
    eval_batch_size: int | None = None
    streaming: bool = False
    shuffle_buffer: int = 1024


@dataclass
class ModelConfig:
    """The net to be trained (the student, where there is a teacher).

    Args:
        name: A model of `torchadder.models`.
        conv: Kind of its inner layers: "adder", "conv", or a mapping with arguments of the layer,
            such as {type: adder, grad: sign}.
        kwargs: Further arguments of the model's constructor.
        weight_norm: "adaptive" normalises the weights of the inner layers with a learned scale, a
            mapping says how (attributes of `torchadder.awn.AwnConfig`, such as {axis: layer}); null
            leaves them plain. Checkpoints for inference hold the plain net.
        head: "slac" replaces the classifier by that of section `slac`; null keeps the model's own.
        checkpoint: Weights to start from (a .safetensors file of the same model); null: fresh ones.
    """

    name: str = "lenet5_bn"
    conv: str | dict[str, Any] = "adder"
    kwargs: dict[str, Any] = field(default_factory=dict)
    weight_norm: str | dict[str, Any] | None = None
    head: Literal["slac"] | None = None
    checkpoint: str | None = None


@dataclass
class OptimizerConfig:
    """Stochastic gradient descent with AdderNet's adaptive rate.

    Args:
        lr: Learning rate at the start.
        momentum: Momentum.
        weight_decay: L2 penalty, on adder weights too, as in the authors' code.
        nesterov: Nesterov's form of momentum.
        eta: AdderNet's eta (arXiv 1912.13200, eq. 13): the gradient of an adder layer with k
            weights is scaled to the norm eta * sqrt(k); null leaves it as it is. No effect on
            other layers.
    """

    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    nesterov: bool = False
    eta: float | None = 0.2


@dataclass
class ScheduleConfig:
    """The learning rate over time.

    Args:
        name: "cosine" (half a period, from `lr` to `min_lr`) or "constant".
        interval: "epoch" changes the rate between epochs, as the authors' code does; "step" changes
            it after each step.
        min_lr: Rate that the cosine ends at.
        warmup: Steps at the start in which the rate rises linearly to that of the schedule.
    """

    name: Literal["cosine", "constant"] = "cosine"
    interval: Literal["epoch", "step"] = "epoch"
    min_lr: float = 0.0
    warmup: int = 0


@dataclass
class DistillConfig:
    """How a net learns from another one, used with any `method` but "supervised".

    A null takes the method's own default. A key that the method does not know must be left out;
    docs/distillation.md lists which method knows which.

    Args:
        alpha: Weight of the soft-label term.
        beta: Weight of the feature term.
        temperature: Temperature of the soft labels.
        taps: Names or patterns of the layers whose outputs are compared; null: the method's choice.
        kernel: PKKD's kernels: "paper" or true (Laplacian for adder layers, Gaussian for
            convolutions), "gaussian", "laplacian" (the same one on both sides), "none" or false.
        scale: How PKKD's kernels find their initial scale: "deviation", "magnitude" or "batch".
        exponent_limit: Bound of the exponents of PKKD's kernels, above 0 and up to 30.
        learned_scales: Sides whose kernels learn their scales: "both", "student" or "none".
        linear_map: Align the two sides by a trained 1x1 convolution.
        progressive: Train the teacher in the same steps; false keeps it fixed.
        cycles: Number of cycles of snapshot distillation.
        dropout: Share of the classifier's inputs set to zero, for `method: dropout`.
        ramp: How alpha and beta grow from 0 to their full value: "none" (full from the start),
            "epochs" (linearly, from batch to batch, within the first `ramp_epochs`), or "teacher"
            (with the training accuracy of a progressive teacher in the epoch before, from chance to
            `ramp_accuracy`).
        ramp_epochs: Epochs (int) or share of the run's epochs (float in 0..1, which may come to
            less than one epoch) until the full value.
        ramp_accuracy: Accuracy of the teacher at the full value, a share in 0..1.
        shared_init: Give the two nets the same initial values: the student takes those of the
            teacher, adder layers scaled to their own initial spread.
        teacher_model: The teacher's model; null: the student's.
        teacher_kwargs: Further arguments of its constructor; null: the student's.
        teacher_conv: Kind of the teacher's inner layers.
        teacher_checkpoint: The teacher's initial weights; wanted if it is fixed.
    """

    alpha: float | None = None
    beta: float | None = None
    temperature: float | None = None
    taps: list[str] | None = None
    kernel: bool | Literal["paper", "gaussian", "laplacian", "none"] | None = None
    scale: Literal["deviation", "magnitude", "batch"] | None = None
    exponent_limit: float | None = None
    learned_scales: Literal["both", "student", "none"] | None = None
    linear_map: bool | None = None
    progressive: bool | None = None
    cycles: int | None = None
    dropout: float | None = None
    ramp: Literal["none", "epochs", "teacher"] = "none"
    ramp_epochs: int | float = 10
    ramp_accuracy: float = 0.9
    shared_init: bool = False
    teacher_model: str | None = None
    teacher_kwargs: dict[str, Any] | None = None
    teacher_conv: str | dict[str, Any] = "conv"
    teacher_checkpoint: str | None = None


@dataclass
class LpConfig:
    """The exponent of the adder layers over time, from the l2 to the l1 norm (arXiv 2105.14202).

    Args:
        schedule: "none" (adder layers as they are), "linear" (a smaller exponent every epoch) or
            "step".
        start: Exponent of the first epoch, above 1 and at most 2.
        share: Share of the epochs in which the exponent is above 1.
        steps: Number of exponents above 1, for "step".
        clip: Keep the input gradient of each pair within [-1, 1] while the exponent is above 1.
    """

    schedule: Literal["none", "linear", "step"] = "none"
    start: float = 2.0
    share: float = 0.75
    steps: int = 4
    clip: bool = False


@dataclass
class SlacConfig:
    """The loss of a net with `model.head: slac` (SLAC, NeurIPS 2021).

    Args:
        nll_weight: Weight of the negative log-likelihood.
        ac_weight: Weight of the term that ties the angles of the skews to the classes' distances.
        sigma_rate: Learning rate of Sigma, as a factor of `optimizer.lr`.
        train_mu: Train the locations (false: they keep their initial values).
        train_sigma: Train the scales.
        train_gamma: Train the skews.
    """

    nll_weight: float = 0.01
    ac_weight: float = 0.1
    sigma_rate: float = 0.01
    train_mu: bool = True
    train_sigma: bool = True
    train_gamma: bool = True


@dataclass
class AdversarialConfig:
    """Training on images that an attack has changed (arXiv 1706.06083), for `method: supervised`.

    Args:
        attack: "none", "pgd" or "fgsm", on every training batch. The net is attacked as it is
            trained, with the statistics of the batch.
        epsilon: Largest change of a pixel, pixels in 0..1; a number, 8/255 is 0.03137.
        step: Change of a pixel in one iteration of PGD; null: 2.5 epsilon / iterations.
        iterations: Iterations of PGD.
        gradient: Input gradient of adder layers in the attack: "sign" (the true one), or
            "surrogate" (the layers' own rule); a net without adder layers has its own only.
        val_iterations: Iterations of the PGD that the net is validated under, with the same
            epsilon; 0: none.
    """

    attack: Literal["none", "pgd", "fgsm"] = "none"
    epsilon: float = 8 / 255
    step: float | None = None
    iterations: int = 7
    gradient: Literal["sign", "surrogate"] = "sign"
    val_iterations: int = 7


@dataclass
class DetectionConfig:
    """The detector and its images, for `method: detection`.

    `model.name` is then the detector, "fcos", "retinanet" or "faster_rcnn", and `model.kwargs` are
    further arguments of its builder in `torchadder.detection`, such as {score_thresh: 0.05}. Of
    `data`, the keys that say what a pixel is go to the detector, and those that augment, cache or
    stream images for classification must be left out.

    Args:
        adder: Parts of adder layers, letters out of "B" (backbone), "N" (neck), "H" (head); "" for
            a conv detector.
        backbone: resnet18, resnet34, resnet50 or resnet101.
        backbone_width: Channels of its first stage; 64 is the net of that name.
        backbone_weights: Checkpoint of a classifier of ours to start the backbone from, or its run
            folder. "{kind}" in it becomes "adder" or "conv", what the backbone is made of, so that
            one value serves all rows of a table.
        neck: "fpn", "pafpn", "pafpn_shortcut" or "r_pafpn".
        neck_channels: Channels of neck and head.
        num_head_convs: Layers of each tower of the head.
        grad: Gradient rule of the adder layers, "sign" or "clip" for instance.
        frozen_bn: Fix the backbone's batch norms, as is common in conv detectors.
        force_frozen_bn: Do so in an adder backbone, too, where training ends in NaN.
        shorter: Lengths in pixels that the shorter side of an image is brought to, in training one
            of them at random, elsewhere the largest.
        longer: Largest length of the longer side.
        flip: Probability of mirroring a training image.
        metric: Average precision that says which epoch is best: "coco" or "voc".
        format: What `data.source` is: "coco", "voc", "yolo", "columns", "digit-scenes"; null finds
            it out.
        images: Folder of the images, if it is not where the format has it.
        class_names: Names of the classes where the source has none, and their order for VOC.
        box_format: "xywh" or "xyxy", for columns.
        first_pixel: What VOC files call the first pixel: 1 or 0.
        objects_column: Column of the objects, if its name is unusual.
        train_split: Split to train on; null: train, else trainval, else the first one.
        use_difficult: Train on difficult objects.
        skip_bad: Go on without entries that cannot be used, and list them.
        scenes: How digit scenes are composed, arguments of
            `torchadder.data.detection.DigitScenes`.
    """

    adder: str = "BN"
    backbone: str = "resnet50"
    backbone_width: int = 64
    backbone_weights: str | None = None
    neck: str = "r_pafpn"
    neck_channels: int = 256
    num_head_convs: int = 4
    grad: str = "sign"
    frozen_bn: bool = False
    force_frozen_bn: bool = False
    shorter: list[int] = field(default_factory=lambda: [800])
    longer: int = 1333
    flip: float = 0.5
    metric: Literal["coco", "voc"] = "coco"
    format: Literal["coco", "voc", "yolo", "columns", "digit-scenes"] | None = None
    images: str | None = None
    class_names: list[str] | None = None
    box_format: Literal["xywh", "xyxy"] = "xywh"
    first_pixel: int = 1
    objects_column: str | None = None
    train_split: str | None = None
    use_difficult: bool = False
    skip_bad: bool = False
    scenes: dict[str, Any] = field(default_factory=dict)


@dataclass
class TrainerConfig:
    """Where and how the loop runs; passed on to Lightning's Trainer.

    Args:
        accelerator: "auto", "cpu", "cuda", "mps" ...
        devices: Number of devices of this machine, a process for each; "auto": all its GPUs, or
            the CPU. Where torchrun starts the processes, it decides.
        precision: "32-true", "bf16-mixed", "16-mixed" or "64-true".
        accumulate: Batches whose gradients are summed before a step.
        gradient_clip: Largest norm of the whole gradient, of a teacher that is trained, too, on its
            own; null: no limit.
        limit_train_batches: Number (int) or share (float) of the training batches of an epoch.
        limit_val_batches: Number (int) or share (float) of the validation batches.
        threads: Threads of torch on the CPU; null leaves the number as it is.
        deterministic: Refuse operators without a deterministic form (matters on GPUs only).
        sync_batchnorm: Take batch norm's statistics over the batch of all processes, and those of
            distillation, where it compares features over a batch.
        timeout: Seconds that processes wait for each other before they give up.
        tf32: Let the convolutions of a GPU round their inputs to TF32, ten bits of mantissa (not
            those of adder layers); faster, and not the numbers of a CPU.
        check_val_every: Epochs from one validation to the next; the last epoch always has one.
            Checkpoints are written after epochs with a validation and, where that takes long, once
            a minute.
        checkpoint_minutes: Minutes from one checkpoint to the next within an epoch; 0: after every
            step; null: none.
        patience: Validations without a better result after which the run ends early; null: never.
        compile: Compile the training step (both nets and the loss): false, true, or a mode of
            torch.compile. Same results up to rounding.
        channels_last: Keep the channels of a pixel next to each other in memory: the form in which
            the kernels of adder layers compute and in which convolutions and batch norms are
            fastest on most machines. Same results up to rounding, which is coarser on a CPU: torch
            sums batch norm's statistics with less care in this form.
        cuda_graph: On a CUDA device, record the training step once and replay it, which frees the
            host from launching its kernels one by one; no effect elsewhere.
        record_stability: Steps from one row of `stability.csv` to the next: variances of weights
            and outputs, movement of batch norm's statistics and gradient norms of every layer; null
            or 0: none. No effect on what is trained.
    """

    accelerator: str = "auto"
    devices: int | str = 1
    precision: str = "32-true"
    accumulate: int = 1
    gradient_clip: float | None = None
    limit_train_batches: int | float = 1.0
    limit_val_batches: int | float = 1.0
    threads: int | None = None
    deterministic: bool = False
    sync_batchnorm: bool = False
    timeout: float = 1800.0
    tf32: bool = False
    check_val_every: int = 1
    checkpoint_minutes: float | None = 10.0
    patience: int | None = None
    compile: (
        bool | Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"]
    ) = False
    channels_last: bool = False
    cuda_graph: bool = False
    record_stability: int | None = None
