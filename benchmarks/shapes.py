"""Named layer shapes. APPEND ONLY: stored results are found by these names.

Every row is one distinct layer of a network for one 3-channel image of 224 x 224, ``count`` the number of times
the network runs it. Multiply-adds are computed from the row; ``TOTALS`` holds what each network's convolutions
are known to cost, and tests/test_benchmarks.py compares the two.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """One layer: a convolution with bias and ReLU, a max-pool, or both in a row (a unit)."""

    name: str
    IC: int
    IH: int
    IW: int
    OC: int  # of a pool: IC
    kernel: int  # of the convolution; 0: there is none
    stride: int = 1
    padding: int = 0
    groups: int = 1
    count: int = 1
    pool: int = 0  # window of the max-pool; 0: there is none
    pool_stride: int = 0
    pool_padding: int = 0
    indices: bool = False  # the max-pool returns its indices too
    op: str = ""  # what is computed of it: "" the layer itself, or one of OPS
    batch: int = 1

    @property
    def network(self) -> str:
        return self.name.partition(".")[0]

    @property
    def conv_extents(self) -> tuple[int, int]:
        """(OH, OW) of the convolution; (IH, IW) where there is none."""
        if not self.kernel:
            return self.IH, self.IW
        return tuple((extent + 2 * self.padding - self.kernel) // self.stride + 1 for extent in (self.IH, self.IW))  # type: ignore[return-value]

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        return self.batch, self.IC, self.IH, self.IW

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        return self.OC, self.IC // self.groups, self.kernel, self.kernel

    @property
    def output_shape(self) -> tuple[int, int, int, int]:
        OH, OW = self.conv_extents
        if self.pool:
            OH, OW = ((extent + 2 * self.pool_padding - self.pool) // self.pool_stride + 1 for extent in (OH, OW))
        return self.batch, self.OC, OH, OW

    @property
    def macs(self) -> int:
        """Multiply-adds of the convolution (of a gradient: as many), by its definition; 0 for a pool."""
        if self.op == "step":
            return STEPS[self.name.partition(".")[2]] * 3 * self.batch  # forward, and two gradients
        OH, OW = self.conv_extents
        return self.batch * OH * OW * self.OC * (self.IC // self.groups) * self.kernel**2

    @property
    def n_bytes(self) -> int:
        """Bytes of float32 input read and output (and int64 indices) written, each once; backward the other way."""
        inputs, outputs = (a * b * c * d for a, b, c, d in (self.input_shape, self.output_shape))
        return 4 * inputs + (12 if self.indices else 4) * outputs

    @property
    def layer_class(self) -> str:
        """The class it is reported in, a key of ``CLASSES`` or of ``TRAINING_CLASSES``."""
        if self.op in ("step", "conv_transpose2d", "max_pool2d_backward"):
            return self.op
        if self.op:
            kind = "depthwise" if self.groups > 1 else "strided" if self.stride > 1 else f"{self.kernel}x{self.kernel}"
            return f"{self.op}-{kind}"
        if not self.kernel:
            return "maxpool"
        if self.pool:
            return "unit"
        if self.groups > 1:
            return "depthwise"
        if self.IC < 4:
            return "first"
        if self.kernel == 1:
            return "1x1" if self.stride == 1 else "1x1s2"
        if self.kernel == 3:
            return "3x3" if self.stride == 1 else "3x3s2"
        return "5x5"

    def __str__(self) -> str:
        plane = f"{self.IH}" if self.IH == self.IW else f"{self.IH}x{self.IW}"
        if self.op == "step":
            return f"{self.name.partition('.')[2]}, {self.IC}@{plane}, batch {self.batch}"
        parts = [f"{self.IC}@{plane}"]
        if self.kernel:
            parts[0] = f"{self.IC}-{self.OC}@{plane}"
            parts.append(f"{self.kernel}x{self.kernel}" + (f" s{self.stride}" if self.stride > 1 else ""))
        if self.pool:
            parts.append(f"pool {self.pool}x{self.pool} s{self.pool_stride}" + (" idx" if self.indices else ""))
        return " ".join([*parts, f"batch {self.batch}"] if self.batch > 1 else parts)


CLASSES = {
    "3x3": "3x3, stride 1",
    "1x1": "1x1, stride 1",
    "1x1s2": "1x1, stride 2",
    "3x3s2": "3x3, stride 2",
    "5x5": "5x5",
    "first": "first layers, 3 channels",
    "depthwise": "depthwise 3x3",
    "maxpool": "max-pool",
    "unit": "convolution + ReLU + max-pool",
}


def conv(
    name: str, IC: int, size: int, OC: int, kernel: int, stride: int = 1, *, p: int | None = None, n: int = 1
) -> Shape:
    """A convolution on a square image; ``p`` (default: half the kernel) its padding, ``n`` its count."""
    return Shape(name, IC, size, size, OC, kernel, stride, kernel // 2 if p is None else p, count=n)


def depthwise(name: str, C: int, size: int, stride: int, n: int = 1) -> Shape:
    return Shape(name, C, size, size, C, 3, stride, 1, C, n)


def pool(name: str, C: int, size: int, window: int, stride: int, padding: int = 0, *, indices: bool = False) -> Shape:
    return Shape(name, C, size, size, C, 0, pool=window, pool_stride=stride, pool_padding=padding, indices=indices)


def unit(name: str, IC: int, size: int, OC: int, kernel: int, stride: int, padding: int, *pooling: int) -> Shape:
    window, step, border = (*pooling, 0)[:3]
    return Shape(
        name, IC, size, size, OC, kernel, stride, padding, pool=window, pool_stride=step, pool_padding=border
    )  # fmt: skip


SHAPES = (
    # The article's unit: Conv(3x3, stride 1) -> ReLU -> MaxPool(2x2, 2)
    unit("article.unit32", 3, 224, 32, 3, 1, 1, 2, 2),
    unit("article.unit64", 3, 224, 64, 3, 1, 1, 2, 2),
    # AlexNet, one-column form ("One weird trick", arXiv 1404.5997), as torchvision
    conv("alexnet.conv1", 3, 224, 64, 11, 4, p=2),
    pool("alexnet.pool1", 64, 55, 3, 2),
    conv("alexnet.conv2", 64, 27, 192, 5),
    pool("alexnet.pool2", 192, 27, 3, 2),
    conv("alexnet.conv3", 192, 13, 384, 3),
    conv("alexnet.conv4", 384, 13, 256, 3),
    conv("alexnet.conv5", 256, 13, 256, 3),
    pool("alexnet.pool5", 256, 13, 3, 2),
    # ZFNet (Zeiler and Fergus, arXiv 1311.2901, figure 3)
    conv("zfnet.conv1", 3, 224, 96, 7, 2, p=1),
    pool("zfnet.pool1", 96, 110, 3, 2, 1),
    conv("zfnet.conv2", 96, 55, 256, 5, 2, p=0),
    pool("zfnet.pool2", 256, 26, 3, 2, 1),
    conv("zfnet.conv3", 256, 13, 384, 3),
    conv("zfnet.conv4", 384, 13, 384, 3),
    conv("zfnet.conv5", 384, 13, 256, 3),
    pool("zfnet.pool5", 256, 13, 3, 2),
    # VGG-16 (Simonyan and Zisserman, arXiv 1409.1556, configuration D)
    conv("vgg16.conv1_1", 3, 224, 64, 3),
    conv("vgg16.conv1_2", 64, 224, 64, 3),
    pool("vgg16.pool1", 64, 224, 2, 2),
    conv("vgg16.conv2_1", 64, 112, 128, 3),
    conv("vgg16.conv2_2", 128, 112, 128, 3),
    pool("vgg16.pool2", 128, 112, 2, 2),
    conv("vgg16.conv3_1", 128, 56, 256, 3),
    conv("vgg16.conv3_2", 256, 56, 256, 3, n=2),
    pool("vgg16.pool3", 256, 56, 2, 2),
    conv("vgg16.conv4_1", 256, 28, 512, 3),
    conv("vgg16.conv4_2", 512, 28, 512, 3, n=2),
    pool("vgg16.pool4", 512, 28, 2, 2),
    conv("vgg16.conv5_1", 512, 14, 512, 3, n=3),
    pool("vgg16.pool5", 512, 14, 2, 2),
    # ResNet-50 (He et al., arXiv 1512.03385; stride 2 in the 3x3 layers, as torchvision)
    conv("resnet50.conv1", 3, 224, 64, 7, 2),
    pool("resnet50.pool1", 64, 112, 3, 2, 1),
    conv("resnet50.layer1.reduce1", 64, 56, 64, 1),
    conv("resnet50.layer1.conv", 64, 56, 64, 3, n=3),
    conv("resnet50.layer1.expand", 64, 56, 256, 1, n=4),  # one of them is the shortcut
    conv("resnet50.layer1.reduce", 256, 56, 64, 1, n=2),
    conv("resnet50.layer2.reduce1", 256, 56, 128, 1),
    conv("resnet50.layer2.conv1", 128, 56, 128, 3, 2),
    conv("resnet50.layer2.shortcut", 256, 56, 512, 1, 2),
    conv("resnet50.layer2.conv", 128, 28, 128, 3, n=3),
    conv("resnet50.layer2.expand", 128, 28, 512, 1, n=4),
    conv("resnet50.layer2.reduce", 512, 28, 128, 1, n=3),
    conv("resnet50.layer3.reduce1", 512, 28, 256, 1),
    conv("resnet50.layer3.conv1", 256, 28, 256, 3, 2),
    conv("resnet50.layer3.shortcut", 512, 28, 1024, 1, 2),
    conv("resnet50.layer3.conv", 256, 14, 256, 3, n=5),
    conv("resnet50.layer3.expand", 256, 14, 1024, 1, n=6),
    conv("resnet50.layer3.reduce", 1024, 14, 256, 1, n=5),
    conv("resnet50.layer4.reduce1", 1024, 14, 512, 1),
    conv("resnet50.layer4.conv1", 512, 14, 512, 3, 2),
    conv("resnet50.layer4.shortcut", 1024, 14, 2048, 1, 2),
    conv("resnet50.layer4.conv", 512, 7, 512, 3, n=2),
    conv("resnet50.layer4.expand", 512, 7, 2048, 1, n=3),
    conv("resnet50.layer4.reduce", 2048, 7, 512, 1, n=2),
    # MobileNetV2 (Sandler et al., arXiv 1801.04381, table 2)
    conv("mobilenetv2.conv1", 3, 224, 32, 3, 2),
    depthwise("mobilenetv2.block1.depthwise", 32, 112, 1),
    conv("mobilenetv2.block1.project", 32, 112, 16, 1),
    conv("mobilenetv2.block2.expand", 16, 112, 96, 1),
    depthwise("mobilenetv2.block2.depthwise", 96, 112, 2),
    conv("mobilenetv2.block2.project", 96, 56, 24, 1),
    conv("mobilenetv2.block3.expand", 24, 56, 144, 1, n=2),
    depthwise("mobilenetv2.block3.depthwise", 144, 56, 1),
    conv("mobilenetv2.block3.project", 144, 56, 24, 1),
    depthwise("mobilenetv2.block4.depthwise", 144, 56, 2),
    conv("mobilenetv2.block4.project", 144, 28, 32, 1),
    conv("mobilenetv2.block5.expand", 32, 28, 192, 1, n=3),
    depthwise("mobilenetv2.block5.depthwise", 192, 28, 1, n=2),
    conv("mobilenetv2.block5.project", 192, 28, 32, 1, n=2),
    depthwise("mobilenetv2.block7.depthwise", 192, 28, 2),
    conv("mobilenetv2.block7.project", 192, 14, 64, 1),
    conv("mobilenetv2.block8.expand", 64, 14, 384, 1, n=4),
    depthwise("mobilenetv2.block8.depthwise", 384, 14, 1, n=4),
    conv("mobilenetv2.block8.project", 384, 14, 64, 1, n=3),
    conv("mobilenetv2.block11.project", 384, 14, 96, 1),
    conv("mobilenetv2.block12.expand", 96, 14, 576, 1, n=3),
    depthwise("mobilenetv2.block12.depthwise", 576, 14, 1, n=2),
    conv("mobilenetv2.block12.project", 576, 14, 96, 1, n=2),
    depthwise("mobilenetv2.block14.depthwise", 576, 14, 2),
    conv("mobilenetv2.block14.project", 576, 7, 160, 1),
    conv("mobilenetv2.block15.expand", 160, 7, 960, 1, n=3),
    depthwise("mobilenetv2.block15.depthwise", 960, 7, 1, n=3),
    conv("mobilenetv2.block15.project", 960, 7, 160, 1, n=2),
    conv("mobilenetv2.block17.project", 960, 7, 320, 1),
    conv("mobilenetv2.conv18", 320, 7, 1280, 1),
    # Units of those networks, for kernels that fuse the pool
    unit("units.alexnet1", 3, 224, 64, 11, 4, 2, 3, 2),
    unit("units.resnet50_1", 3, 224, 64, 7, 2, 3, 3, 2, 1),
    unit("units.vgg16_1", 64, 224, 64, 3, 1, 1, 2, 2),
    unit("units.vgg16_2", 128, 112, 128, 3, 1, 1, 2, 2),
    unit("units.vgg16_4", 512, 28, 512, 3, 1, 1, 2, 2),
    # Max-pools: in and out of cache, and with indices
    pool("pools.2x2_112", 64, 112, 2, 2),
    pool("pools.2x2_56", 128, 56, 2, 2),
    pool("pools.2x2_112_idx", 64, 112, 2, 2, indices=True),
    pool("pools.3x3s1_28", 192, 28, 3, 1, 1),
    pool("pools.3x3_112_idx", 64, 112, 3, 2, 1, indices=True),
    pool("pools.3x3_56_idx", 128, 56, 3, 2, 1, indices=True),
    pool("pools.2x2_224_idx", 64, 224, 2, 2, indices=True),
)
BY_NAME = {shape.name: shape for shape in SHAPES}

NETWORKS = ("alexnet", "zfnet", "vgg16", "resnet50", "mobilenetv2")

# Multiply-adds of all convolutions of one forward pass
TOTALS = {
    "alexnet": 0.656e9,  # torchvision's alexnet without its linear layers
    "zfnet": 1.110e9,
    "vgg16": 15.35e9,
    "resnet50": 4.087e9,  # 4.089e9 with the linear layer
    "mobilenetv2": 0.300e9,
}

# Small shapes, one of each class: every benchmark runs on them in milliseconds, the reference back end too
SMOKE = (
    unit("smoke.unit", 3, 16, 8, 3, 1, 1, 2, 2),
    conv("smoke.3x3", 8, 14, 16, 3),
    conv("smoke.1x1", 16, 7, 8, 1),
    conv("smoke.3x3s2", 8, 14, 8, 3, 2),
    conv("smoke.5x5", 8, 13, 8, 5),
    conv("smoke.first", 3, 23, 8, 7, 2),
    depthwise("smoke.depthwise", 16, 14, 1),
    pool("smoke.maxpool", 16, 14, 3, 2, 1),
    pool("smoke.maxpool_idx", 16, 14, 2, 2, indices=True),
)


# ------------------------------------------------------------------------------------------------------- training

OPS = ("grad_weight", "grad_input", "conv_transpose2d", "max_pool2d_backward", "step")
TRAINING_CLASSES = {
    "grad_weight-3x3": "gradient of the weight, 3x3",
    "grad_input-3x3": "gradient of the input, 3x3",
    "grad_weight-1x1": "gradient of the weight, 1x1",
    "grad_input-1x1": "gradient of the input, 1x1",
    "grad_weight-strided": "gradient of the weight, stride 2",
    "grad_input-strided": "gradient of the input, stride 2",
    "grad_weight-depthwise": "gradient of the weight, depthwise 3x3",
    "grad_input-depthwise": "gradient of the input, depthwise 3x3",
    "max_pool2d_backward": "gradient of a max-pool whose windows do not overlap",
    "conv_transpose2d": "transposed convolution",
    "step": "training step: forward, loss, backward, SGD with momentum",
}
# Multiply-adds of one image: the article's network on 28 x 28, VGG-16's convolutions (and a linear layer) on 64 x 64, also
# with batch normalisation
STEPS = {"article": 2_440_960, "vgg16": 1_252_806_656, "vgg16_bn": 1_252_806_656, "smoke": 4_600, "smoke_bn": 4_600}


def gradients(name: str, IC: int, size: int, OC: int, kernel: int, stride: int = 1, groups: int = 1, batch: int = 8):  # type: ignore[no-untyped-def]
    """Both gradients of one convolution."""
    for op in OPS[:2]:
        yield Shape(f"{name}.{op}", IC, size, size, OC, kernel, stride, kernel // 2, groups, op=op, batch=batch)


def unpooled(name: str, C: int, size: int, window: int, batch: int = 8) -> Shape:
    return Shape(name, C, size, size, C, 0, pool=window, pool_stride=window, indices=True, op=OPS[3], batch=batch)


def upsampled(name: str, IC: int, size: int, OC: int, kernel: int, stride: int, padding: int, batch: int = 8) -> Shape:
    """A transposed convolution of an image of ``size``; as a shape, the convolution whose adjoint it is."""
    extent = (size - 1) * stride - 2 * padding + kernel
    return Shape(name, OC, extent, extent, IC, kernel, stride, padding, op=OPS[2], batch=batch)


def step(name: str, C: int, size: int, batch: int) -> Shape:
    return Shape(name, C, size, size, 10, 0, op="step", batch=batch)


TRAINING = (
    *gradients("backward.3x3_64", 64, 56, 64, 3),
    *gradients("backward.3x3_128", 128, 28, 128, 3),
    *gradients("backward.3x3_256", 256, 14, 256, 3),
    *gradients("backward.1x1_64", 64, 56, 256, 1),
    *gradients("backward.1x1_512", 512, 28, 128, 1),
    *gradients("backward.1x1_1024", 1024, 14, 256, 1),
    *gradients("backward.3x3s2_128", 128, 56, 128, 3, 2),
    *gradients("backward.3x3s2_256", 256, 28, 256, 3, 2),
    *gradients("backward.1x1s2_256", 256, 56, 512, 1, 2),
    *gradients("backward.depthwise_32", 32, 112, 32, 3, 1, 32),
    *gradients("backward.depthwise_96s2", 96, 112, 96, 3, 2, 96),
    *gradients("backward.depthwise_144", 144, 56, 144, 3, 1, 144),
    *gradients("backward.depthwise_192s2", 192, 28, 192, 3, 2, 192),
    *gradients("backward.depthwise_384", 384, 14, 384, 3, 1, 384),
    unpooled("backward.pool_64", 64, 112, 2),
    unpooled("backward.pool_128", 128, 56, 2),
    unpooled("backward.pool_256", 256, 28, 2),
    upsampled("backward.transposed_256", 256, 28, 128, 2, 2, 0),
    upsampled("backward.transposed_128", 128, 28, 64, 4, 2, 1),
    upsampled("backward.transposed_64", 64, 56, 64, 3, 1, 1),
    step("step.article", 1, 28, 64),
    step("step.vgg16", 3, 64, 8),
    step("step.vgg16_bn", 3, 64, 8),
)
TRAINING_SMOKE = (
    *gradients("tiny.3x3", 8, 10, 9, 3, batch=2),
    unpooled("tiny.pool", 4, 8, 2, batch=2),
    upsampled("tiny.transposed", 8, 6, 4, 3, 2, 1, batch=2),
    step("tiny.smoke", 1, 12, 4),
    step("tiny.smoke_bn", 1, 12, 4),
)


def select_training(names: list[str] | None, classes: list[str] | None) -> tuple[Shape, ...]:
    """Shapes of TRAINING by name or group ("backward", "step", "tiny"), and by class; "backward" is every class."""
    known = (*TRAINING, *TRAINING_SMOKE)
    chosen = [shape for shape in known if shape.name in names or shape.network in names] if names else list(TRAINING)
    return tuple(shape for shape in chosen if not classes or "backward" in classes or shape.layer_class in classes)


def network(name: str) -> tuple[Shape, ...]:
    """The layers of one network, convolutions and max-pools, in the order in which it runs them first."""
    return tuple(shape for shape in SHAPES if shape.network == name)


def select(names: list[str] | None = None, classes: list[str] | None = None) -> tuple[Shape, ...]:
    """Shapes by name, network ("vgg16") or "smoke", and by class; without either, all but SMOKE.

    Raises
    ------
    ValueError
        If a name fits no shape.
    """
    pool_of = (*SHAPES, *SMOKE)
    chosen = list(SHAPES)
    if names:
        for name in names:
            if not any(name in (shape.name, shape.network) for shape in pool_of):
                groups = ", ".join(dict.fromkeys(shape.network for shape in pool_of))
                raise ValueError(f"shape {name!r}: it must be a name of benchmarks/shapes.py or one of {groups}")
        chosen = [shape for shape in pool_of if shape.name in names or shape.network in names]
    return tuple(shape for shape in chosen if not classes or shape.layer_class in classes)
