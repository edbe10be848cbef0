"""What a training run is: plain dataclasses that a YAML file or the command line fills.

A `Recipe` is data only. Nothing here imports torch, so the command line can explain and check every
option at once; `torchadder.training.fit` turns a recipe into a run.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import re
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

PLACE_KEYS = ("accelerator", "devices", "threads", "timeout")
"""Keys of `trainer` that say where a run computes, not what: they may change when it goes on."""


class RecipeError(ValueError):
    """A recipe that cannot be run; the message names the key, its value and what is wanted."""


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
        linear_map: Align the two sides by a trained 1x1 convolution.
        progressive: Train the teacher in the same steps; false keeps it fixed.
        cycles: Number of cycles of snapshot distillation.
        dropout: Share of the classifier's inputs set to zero, for `method: dropout`.
        ramp: How alpha and beta grow from 0 to their full value: "none" (full from the start),
            "epochs" (linearly, within the first `ramp_epochs`), or "teacher" (with the training
            accuracy of a progressive teacher in the epoch before, from chance to `ramp_accuracy`).
        ramp_epochs: Epochs until the full value.
        ramp_accuracy: Accuracy of the teacher at the full value, a share in 0..1.
        shared_init: Give the two nets the same initial values: the student takes those of the
            teacher, adder layers scaled to unit variance.
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
    linear_map: bool | None = None
    progressive: bool | None = None
    cycles: int | None = None
    dropout: float | None = None
    ramp: Literal["none", "epochs", "teacher"] = "none"
    ramp_epochs: int = 10
    ramp_accuracy: float = 0.9
    shared_init: bool = False
    teacher_model: str | None = None
    teacher_kwargs: dict[str, Any] | None = None
    teacher_conv: str | dict[str, Any] = "conv"
    teacher_checkpoint: str | None = None


_RAMP_KEYS = ("ramp", "ramp_epochs", "ramp_accuracy")
_TEACHER_KEYS = (
    "shared_init",
    "teacher_model",
    "teacher_kwargs",
    "teacher_conv",
    "teacher_checkpoint",
)


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
        backbone_weights: Checkpoint of a classifier of ours to start the backbone from.
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


_NOT_OF_DETECTION = (
    "data.augment",
    "data.image_size",
    "data.label_column",
    "data.device_cache",
    "data.streaming",
    "model.conv",
    "model.weight_norm",
    "model.head",
    "lp.schedule",
    "adversarial.attack",
    "trainer.compile",
    "trainer.cuda_graph",
    "trainer.record_stability",
)
"""Keys that mean nothing in detection, and are refused there."""


@dataclass
class TrainerConfig:
    """Where and how the loop runs; passed on to Lightning's Trainer.

    Args:
        accelerator: "auto", "cpu", "cuda", "mps" ...
        devices: Number of devices of this machine, a process for each; "auto": all its GPUs, or
            the CPU. Where torchrun starts the processes, it decides.
        precision: "32-true", "bf16-mixed", "16-mixed", "64-true" ...
        accumulate: Batches whose gradients are summed before a step.
        gradient_clip: Largest norm of the whole gradient; null: no limit.
        limit_train_batches: Number (int) or share (float) of the training batches of an epoch.
        limit_val_batches: Number (int) or share (float) of the validation batches.
        threads: Threads of torch on the CPU; null leaves the number as it is.
        deterministic: Refuse operators without a deterministic form (matters on GPUs only).
        sync_batchnorm: Take batch norm's statistics over the batch of all processes.
        timeout: Seconds that processes wait for each other before they give up.
        tf32: Let the convolutions of a GPU round their inputs to TF32, ten bits of mantissa (not
            those of adder layers); faster, and not the numbers of a CPU.
        check_val_every: Epochs from one validation to the next; the last epoch always has one.
            Checkpoints are written after epochs with a validation and, where that takes long, once
            a minute.
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
    patience: int | None = None
    compile: (
        bool | Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"]
    ) = False
    channels_last: bool = False
    cuda_graph: bool = False
    record_stability: int | None = None


@dataclass
class Recipe:
    """A training run, complete.

    Args:
        name: Name of the run, the first part of its folder's name.
        seed: Seed of the initial weights, the order of the images and their augmentation.
        epochs: Passes over the training images.
        method: "supervised" (labels only), "detection" (objects and their boxes), or a method of
            `torchadder.distill.METHODS`: "pkkd", "kd", "at", "sp", "fsp", "fitnet", "snapshot",
            "dropout".
        data: The images.
        model: The net.
        optimizer: The optimizer.
        schedule: The learning rate over time.
        detection: The detector and its images, if `method` is "detection".
        distill: The distillation, if `method` is one.
        lp: The exponent of the adder layers over time.
        slac: The loss, if `model.head` is "slac".
        adversarial: An attack on the training images.
        trainer: The loop.
    """

    name: str = "run"
    seed: int = 0
    epochs: int = 10
    method: str = "supervised"
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    detection: DetectionConfig = field(default_factory=DetectionConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    lp: LpConfig = field(default_factory=LpConfig)
    slac: SlacConfig = field(default_factory=SlacConfig)
    adversarial: AdversarialConfig = field(default_factory=AdversarialConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)

    def __post_init__(self) -> None:
        """Refuses values out of range.

        Raises:
            RecipeError: If a number is out of range or two keys contradict each other.
        """
        _require(
            bool(self.name) and not set(self.name) & set("/\\\0"),
            "name",
            self.name,
            "a name without slashes",
        )
        _require(0 <= self.seed < 2**32, "seed", self.seed, "0 .. 4294967295")
        _require(self.epochs >= 1, "epochs", self.epochs, "at least 1")
        data, optimizer, trainer = self.data, self.optimizer, self.trainer
        _require(data.batch_size >= 1, "data.batch_size", data.batch_size, "at least 1")
        _require(
            data.image_size is None or data.image_size >= 1,
            "data.image_size",
            data.image_size,
            "at least 1",
        )
        _require(
            0 < data.val_fraction < 1, "data.val_fraction", data.val_fraction, "between 0 and 1"
        )
        _require(
            data.workers is None or data.workers >= 0, "data.workers", data.workers, "at least 0"
        )
        _require(data.shuffle_buffer >= 1, "data.shuffle_buffer", data.shuffle_buffer, "at least 1")
        _require(
            data.std is None or all(value > 0 for value in data.std),
            "data.std",
            data.std,
            "positive numbers",
        )
        _require(optimizer.lr > 0, "optimizer.lr", optimizer.lr, "a positive number")
        _require(optimizer.momentum >= 0, "optimizer.momentum", optimizer.momentum, "at least 0")
        _require(
            optimizer.weight_decay >= 0,
            "optimizer.weight_decay",
            optimizer.weight_decay,
            "at least 0",
        )
        _require(
            optimizer.eta is None or optimizer.eta > 0,
            "optimizer.eta",
            optimizer.eta,
            "a positive number or null",
        )
        _require(
            0 <= self.schedule.min_lr <= optimizer.lr,
            "schedule.min_lr",
            self.schedule.min_lr,
            f"0 .. optimizer.lr={optimizer.lr}",
        )
        warmup = self.schedule.warmup
        _require(warmup >= 0, "schedule.warmup", warmup, "at least 0")
        _require(
            data.eval_batch_size is None or data.eval_batch_size >= 1,
            "data.eval_batch_size",
            data.eval_batch_size,
            "at least 1",
        )
        _require(trainer.accumulate >= 1, "trainer.accumulate", trainer.accumulate, "at least 1")
        _require(
            trainer.check_val_every >= 1,
            "trainer.check_val_every",
            trainer.check_val_every,
            "at least 1",
        )
        _require(
            trainer.patience is None or trainer.patience >= 1,
            "trainer.patience",
            trainer.patience,
            "at least 1, or null",
        )
        _check_graph(self)
        for key in ("limit_train_batches", "limit_val_batches"):
            limit = getattr(trainer, key)
            _require(
                limit >= 1 if isinstance(limit, int) else 0 < limit <= 1,
                f"trainer.{key}",
                limit,
                "an int of at least 1 or a float in (0, 1]",
            )
        _require(
            trainer.threads is None or trainer.threads >= 1,
            "trainer.threads",
            trainer.threads,
            "at least 1",
        )
        _require(
            trainer.devices == -1 or not isinstance(trainer.devices, int) or trainer.devices >= 1,
            "trainer.devices",
            trainer.devices,
            "at least 1, or auto",
        )
        _require(trainer.timeout > 0, "trainer.timeout", trainer.timeout, "a positive number")
        _require(
            trainer.record_stability is None or trainer.record_stability >= 0,
            "trainer.record_stability",
            trainer.record_stability,
            "at least 0, or null",
        )
        self.distill = _complete(self.method, self.distill)
        self._check_distill()
        self._check_lp_and_slac()
        self._check_adversarial()
        self._check_weight_norm()
        self._check_detection()

    def _check_detection(self) -> None:
        if self.method != "detection":
            for key, default in dataclasses.asdict(DetectionConfig()).items():
                value = getattr(self.detection, key)
                wanted = f"{default!r}, because method is {self.method},"
                _require(value == default, f"detection.{key}", value, wanted)
            return
        plain = Recipe()
        for key in _NOT_OF_DETECTION:
            section, _, name = key.partition(".")
            value = getattr(getattr(self, section), name)
            default = getattr(getattr(plain, section), name)
            _require(value == default, key, value, f"{default!r}, because method is detection,")
        detection = self.detection
        for key, sides in (("shorter", detection.shorter), ("longer", [detection.longer])):
            fits = bool(sides) and all(side >= 1 for side in sides)
            _require(fits, f"detection.{key}", getattr(detection, key), "pixels of at least 1")
        _require(0 <= detection.flip <= 1, "detection.flip", detection.flip, "a share in 0..1")
        first = detection.first_pixel
        _require(first in (0, 1), "detection.first_pixel", first, "0 or 1")

    def _check_lp_and_slac(self) -> None:
        lp, slac = self.lp, self.slac
        _require(1 < lp.start <= 2, "lp.start", lp.start, "above 1, up to 2")
        _require(0 < lp.share <= 1, "lp.share", lp.share, "a share above 0, up to 1")
        _require(lp.steps >= 1, "lp.steps", lp.steps, "at least 1")
        for key in ("nll_weight", "ac_weight"):
            weight = getattr(slac, key)
            finite = 0 <= weight < float("inf")
            _require(finite, f"slac.{key}", weight, "a finite number of at least 0")
        _require(0 < slac.sigma_rate < float("inf"), "slac.sigma_rate", slac.sigma_rate, "> 0")
        _require(
            self.model.head is None or "head" not in self.model.kwargs,
            "model.kwargs.head",
            self.model.kwargs.get("head"),
            f"no second head beside model.head = {self.model.head!r}",
        )
        _require(
            self.model.head is None or self.method == "supervised",
            "model.head",
            self.model.head,
            f"null, because method is {self.method}: the loss of the head is that of labels alone",
        )

    def _check_weight_norm(self) -> None:
        from torchadder.awn.config import resolve

        spec = self.model.weight_norm
        try:
            resolve(spec)
        except (ValueError, TypeError) as error:
            raise RecipeError(f"model.weight_norm = {spec!r}: {error}") from error
        _require(
            spec is None or self.lp.schedule == "none",
            "model.weight_norm",
            spec,
            f"null, because lp.schedule is {self.lp.schedule}: its layers change their class",
        )

    def _check_adversarial(self) -> None:
        attack = self.adversarial
        _require(0 < attack.epsilon <= 1, "adversarial.epsilon", attack.epsilon, "above 0, up to 1")
        _require(
            attack.step is None or 0 < attack.step < float("inf"),
            "adversarial.step",
            attack.step,
            "a positive number or null",
        )
        _require(attack.iterations >= 1, "adversarial.iterations", attack.iterations, "at least 1")
        _require(
            attack.val_iterations >= 0,
            "adversarial.val_iterations",
            attack.val_iterations,
            "at least 0",
        )
        is_plain = self.method == "supervised" and self.model.head is None
        _require(
            attack.attack == "none" or is_plain,
            "adversarial.attack",
            attack.attack,
            "none, unless method is supervised and model.head null",
        )

    def _check_distill(self) -> None:
        for key in ("alpha", "beta"):
            weight = getattr(self.distill, key)
            _require(
                weight is None or 0 <= weight < float("inf"),
                f"distill.{key}",
                weight,
                "a finite number of at least 0",
            )
        distill = self.distill
        _require(
            distill.temperature is None or distill.temperature > 0,
            "distill.temperature",
            distill.temperature,
            "> 0",
        )
        _require(
            distill.cycles is None or 2 <= distill.cycles <= self.epochs,
            "distill.cycles",
            distill.cycles,
            f"2 .. epochs = {self.epochs}",
        )
        _require(distill.ramp_epochs >= 1, "distill.ramp_epochs", distill.ramp_epochs, ">= 1")
        _require(
            0 < distill.ramp_accuracy <= 1,
            "distill.ramp_accuracy",
            distill.ramp_accuracy,
            "a share above 0, up to 1",
        )
        _require(
            distill.ramp != "teacher" or bool(distill.progressive),
            "distill.ramp",
            distill.ramp,
            "none or epochs, because no teacher is trained",
        )
        _require(
            distill.progressive is not False or distill.teacher_checkpoint is not None,
            "distill.teacher_checkpoint",
            distill.teacher_checkpoint,
            "a checkpoint, because distill.progressive is false: a fixed teacher must know "
            "something",
        )

    def to_dict(self) -> dict[str, Any]:
        """The recipe as nested dicts of plain values, ready for YAML or JSON."""
        return dataclasses.asdict(self)


def _complete(method: str, config: DistillConfig) -> DistillConfig:
    """The options of a method with its defaults filled in.

    Raises:
        RecipeError: On an unknown method, or a key that it does not know.
    """
    from torchadder.distill import registry

    # Before there were other methods, files spelled PKKD's defaults out whatever their method.
    spelled_out = registry.options_of("pkkd")
    known: dict[str, Any] = {}
    is_plain = method in ("supervised", "detection")
    if not is_plain:
        try:
            known = registry.options_of(method)
        except ValueError as error:
            raise RecipeError(f"method: {error} (or 'supervised', 'detection')") from error
    wants_teacher = not is_plain and registry.find_method(method).wants_teacher
    shared = _TEACHER_KEYS if wants_teacher else ()
    shared += _RAMP_KEYS if "alpha" in known else ()
    filled = {}
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if item.name in known:
            filled[item.name] = known[item.name] if value is None else value
        elif item.name in shared:
            continue
        elif value == item.default or value == spelled_out.get(item.name):
            filled[item.name] = item.default
        else:
            owners = registry.methods_with(item.name)
            if item.name in _RAMP_KEYS:
                owners = registry.methods_with("alpha")
            elif item.name in _TEACHER_KEYS:
                owners = [name for name, each in registry.METHODS.items() if each.wants_teacher]
            raise RecipeError(
                f"distill.{item.name} = {value!r}: method {method} does not know this key; "
                f"it is known to {', '.join(owners)}"
            )
    return dataclasses.replace(config, **filled)


def _check_graph(recipe: Recipe) -> None:
    trainer = recipe.trainer
    if not trainer.cuda_graph:
        return
    _require(
        trainer.accumulate == 1,
        "trainer.accumulate",
        trainer.accumulate,
        "1 (a replayed step, trainer.cuda_graph, writes its gradients over those of the batch "
        "before)",
    )
    _require(
        trainer.compile not in ("reduce-overhead", "max-autotune"),
        "trainer.compile",
        trainer.compile,
        "a mode without CUDA graphs of its own (trainer.cuda_graph makes one of the whole step)",
    )


def keys(section: type = Recipe, prefix: str = "") -> list[str]:
    """All keys of a recipe in dotted form, sections included.

    >>> [key for key in keys() if key.startswith("schedule")]
    ['schedule', 'schedule.name', 'schedule.interval', 'schedule.min_lr']
    """
    found = []
    for name, hint in typing.get_type_hints(section).items():
        found.append(prefix + name)
        if dataclasses.is_dataclass(hint):
            found.extend(keys(typing.cast("type", hint), f"{prefix}{name}."))
    return found


def from_dict(values: dict[str, Any], origin: str = "recipe") -> Recipe:
    """Builds a recipe from nested dicts, refusing unknown keys and wrong types.

    Args:
        values: Nested values, as read from YAML; what is missing takes its default.
        origin: What to call the source of the values in an error.

    Raises:
        RecipeError: On an unknown key (with the nearest known one), a wrong type, or a value out
            of range.
    """
    from jsonargparse import ArgumentError

    check_keys(values, origin)
    parser = _parser()
    try:
        sections = parser.instantiate(parser.parse_object(values))
    except ArgumentError as error:
        raise RecipeError(f"{origin}: {explain(str(error))}") from error
    return Recipe(**sections.as_dict())


@functools.cache
def _parser() -> ArgumentParser:
    """The parser of recipes; building it takes longer than parsing."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Recipe)
    return parser


def read_recipe(folder: Path, place: Mapping[str, Any] | None = None) -> Recipe:
    """The recipe of a run folder.

    Args:
        folder: The run folder.
        place: New values for keys of its `trainer` that say where it computes.

    Raises:
        RecipeError: If there is no run in `folder`, or a key belongs to the run itself.
    """
    import yaml

    config = folder / "config.yaml"
    if not config.is_file():
        raise RecipeError(f"resume {str(folder)!r}: no run folder, config.yaml is missing")
    try:
        values = yaml.safe_load(config.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise RecipeError(f"{config}: not YAML: {error}") from error
    for key in place or {}:
        if key not in PLACE_KEYS:
            raise RecipeError(
                f"resume {str(folder)!r}: trainer.{key} belongs to the run; only trainer."
                f"{', trainer.'.join(PLACE_KEYS)} may change when it goes on"
            )
    if place and isinstance(values, dict):
        values["trainer"] = (values.get("trainer") or {}) | dict(place)
    return from_dict(values, str(config))


def check_keys(values: Any, origin: str, section: Any = Recipe, prefix: str = "") -> None:
    """Refuses keys that no recipe has.

    Args:
        values: Nested values, as read from YAML.
        origin: What to call the source of the values in an error.
        section: The dataclass that `values` is meant for.
        prefix: Dotted name of that section, with a dot at its end.

    Raises:
        RecipeError: Naming the first unknown key and the nearest known one.
    """
    if not isinstance(values, dict):
        where = f"{prefix.rstrip('.')} is" if prefix else "holds"
        raise RecipeError(f"{origin}: {where} {values!r}; keys with values are wanted")
    hints = typing.get_type_hints(section)
    for key, value in values.items():
        if key not in hints:
            name = f"{prefix}{key}"
            raise RecipeError(f"{origin}: unknown key {name}{suggest(name)}")
        if dataclasses.is_dataclass(hints[key]):
            check_keys(value, origin, hints[key], f"{prefix}{key}.")


def suggest(key: str) -> str:
    """A hint with the known key nearest to `key`, or an empty string.

    >>> suggest("optimizer.learning_rat")
    ''
    >>> suggest("optimiser.lr")
    '; the nearest known key is optimizer.lr'
    """
    known = keys()
    last = key.rpartition(".")[2]
    matches = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    # `lr: 0.1` at the top level is the key of a section, put in the wrong place.
    misplaced = [name for name in known if name.rpartition(".")[2] == last]
    nearest = (misplaced or matches)[:1]
    return f"; the nearest known key is {nearest[0]}" if nearest else ""


def explain(message: str) -> str:
    r"""The parser's message about a value of the wrong type, in one short line.

    >>> explain('Parser key "optimizer.lr":\n  Expected a <class \'float\'>. Got value: abc')
    'optimizer.lr = abc: float is wanted'
    """
    tidy = re.sub(r"<class '([\w.]+)'>", r"\1", " ".join(message.split()))
    tidy = tidy.replace("typing.", "").replace("NoneType", "null")
    key = re.search(r'Parser key "([^"]+)"', tidy)
    simple = re.search(r"Expected an? (.+?)\. Got value: (.*)", tidy)
    union = re.search(r"Subtypes: \[(.*?)\] Errors: .*Given value: (.*)", tidy)
    if key and simple and not union:
        return f"{key[1]} = {simple[2]}: {simple[1]} is wanted"
    if key and union:
        return f"{key[1]} = {union[2]}: {' or '.join(union[1].split(', '))} is wanted"
    return tidy


def _require(condition: bool, key: str, value: object, wanted: str) -> None:
    if not condition:
        raise RecipeError(f"{key} = {value!r}: {wanted} is wanted")
