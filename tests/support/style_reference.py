"""Networks of style transfer again, by numpy in float64 or by torch, with random weights."""

import itertools

import numpy as np

INCEPTION = {  # of each block: its branches, as convolutions (name, kernel, padding), with the stride of the last one
    "A": ([("branch1x1", (1, 1), (0, 0))], [("branch5x5_1", (1, 1), (0, 0)), ("branch5x5_2", (5, 5), (2, 2))],
          [("branch3x3dbl_1", (1, 1), (0, 0)), ("branch3x3dbl_2", (3, 3), (1, 1)), ("branch3x3dbl_3", (3, 3), (1, 1))]),
    "B": ([("branch3x3", (3, 3), (0, 0))],
          [("branch3x3dbl_1", (1, 1), (0, 0)), ("branch3x3dbl_2", (3, 3), (1, 1)), ("branch3x3dbl_3", (3, 3), (0, 0))]),
    "C": ([("branch1x1", (1, 1), (0, 0))],
          [("branch7x7_1", (1, 1), (0, 0)), ("branch7x7_2", (1, 7), (0, 3)), ("branch7x7_3", (7, 1), (3, 0))],
          [("branch7x7dbl_1", (1, 1), (0, 0)), ("branch7x7dbl_2", (7, 1), (3, 0)), ("branch7x7dbl_3", (1, 7), (0, 3)),
           ("branch7x7dbl_4", (7, 1), (3, 0)), ("branch7x7dbl_5", (1, 7), (0, 3))]),
}  # fmt: skip
BLOCKS = dict(zip(["5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e"], "AAABCCCC", strict=True))
STEM = [("Conv2d_1a_3x3", 3, 2, 0), ("Conv2d_2a_3x3", 3, 1, 0), ("Conv2d_2b_3x3", 3, 1, 1), "pool",
        ("Conv2d_3b_1x1", 1, 1, 0), ("Conv2d_4a_3x3", 3, 1, 0), "pool"]  # fmt: skip


def random_transformer(seed=0, *, channels=(4, 6, 8), z=5, blocks=2):
    """Tensors by the names of Jackson et al.'s transformer, in torch's layout."""
    random, tensors, layer = np.random.default_rng(seed), {}, itertools.count()

    def add(name, *shape):
        tensors[name] = (random.normal(size=shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)

    def conv(name, before, after, size):
        add(f"{name}.weight", after, before, size, size)
        add(f"{name}.bias", after)

    def linear(name, width):
        for kind in ("beta", "gamma"):
            add(f"{name.format(kind)}.weight", width, z)
            add(f"{name.format(kind)}.bias", width)

    a, b, c = channels
    for before, after, size in ((3, a, 9), (a, b, 3), (b, c, 3)):
        conv(f"layers.{next(layer)}.conv", before, after, size)
    for _ in range(blocks):
        name = f"layers.{next(layer)}"
        for number in "12":
            conv(f"{name}.conv{number}", c, c, 3)
            linear(f"{name}.fc_{{}}{number}", c)
    for before, after, size in ((c, b, 3), (b, a, 3), (a, 3, 9)):
        name = f"layers.{next(layer)}"
        conv(f"{name}.conv", before, after, size)
        linear(f"{name}.fc_{{}}", after)
    return tensors


def random_predictor(seed=0, *, width=3, z=5, gain=3):
    """The same of the predictor; every convolution has ``width`` outputs."""
    random, tensors = np.random.default_rng(seed), {}

    def conv(name, before, kernel):
        scale = np.sqrt(gain / (before * np.prod(kernel)))  # so that pictures differ at the end
        tensors[f"{name}.conv.weight"] = (scale * random.normal(size=(width, before, *kernel))).astype(np.float32)
        for kind, low in (("weight", 0.5), ("bias", -0.5), ("running_mean", -0.5), ("running_var", 0.5)):
            tensors[f"{name}.bn.{kind}"] = random.uniform(low, low + 1, width).astype(np.float32)

    channels = 3
    for name, size, *_ in (layer for layer in STEM if layer != "pool"):
        conv(name, channels, (size, size))
        channels = width
    for block, kind in BLOCKS.items():
        for branch in INCEPTION[kind]:
            before = channels
            for name, kernel, _ in branch:
                conv(f"Mixed_{block}.{name}", before, kernel)
                before = width
        if kind != "B":
            conv(f"Mixed_{block}.branch_pool", channels, (1, 1))
        channels = width * len(INCEPTION[kind]) + (channels if kind == "B" else width)
    tensors["fc.weight"] = random.normal(size=(z, channels)).astype(np.float32)
    tensors["fc.bias"] = random.normal(size=z).astype(np.float32)
    return tensors


class Numpy:
    """The operations on pictures [B, C, H, W]."""

    def array(self, x):
        return np.asarray(x, np.float64)

    def conv(self, x, weight, bias=None, stride=1, padding=(0, 0)):
        (p, q), (h, w) = padding, weight.shape[2:]
        x = np.pad(x, ((0, 0), (0, 0), (p, p), (q, q)))
        windows = np.lib.stride_tricks.sliding_window_view(x, (h, w), (2, 3))[:, :, ::stride, ::stride]
        y = np.einsum("bchwij,ocij->bohw", windows, weight, optimize=True)
        return y if bias is None else y + bias[:, None, None]

    def windows(self, x, size, stride, padding=0):
        x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
        return np.lib.stride_tricks.sliding_window_view(x, (size, size), (2, 3))[:, :, ::stride, ::stride]

    def max_pool(self, x, size, stride):
        return self.windows(x, size, stride).max((4, 5))

    def mean_pool(self, x, size, stride, padding=0):
        return self.windows(x, size, stride, padding).mean((4, 5))

    def reflect(self, x, n):
        return np.pad(x, ((0, 0), (0, 0), (n, n), (n, n)), mode="reflect")

    def double(self, x):
        return x.repeat(2, 2).repeat(2, 3)

    def instance_norm(self, x):
        return (x - x.mean((2, 3), keepdims=True)) / np.sqrt(x.var((2, 3), keepdims=True) + 1e-5)

    def batch_norm(self, x, mean, variance, weight, bias, training):
        if training:
            mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3))
        scale = weight / np.sqrt(variance + 1e-3)
        return (x - mean[:, None, None]) * scale[:, None, None] + bias[:, None, None]

    def relu(self, x):
        return np.maximum(x, 0)

    def sigmoid(self, x):
        return 1 / (1 + np.exp(-x))

    def concatenate(self, xs):
        return np.concatenate(xs, axis=1)

    def mean(self, x):
        return x.mean((2, 3))


class Torch(Numpy):
    """The same by torch's own functions."""

    def __init__(self):
        import torch

        self.torch, self.f = torch, torch.nn.functional

    def array(self, x):
        return self.torch.tensor(np.ascontiguousarray(x))

    def conv(self, x, weight, bias=None, stride=1, padding=(0, 0)):
        return self.f.conv2d(x, weight, bias, stride=stride, padding=padding)

    def max_pool(self, x, size, stride):
        return self.f.max_pool2d(x, size, stride)

    def mean_pool(self, x, size, stride, padding=0):
        return self.f.avg_pool2d(x, size, stride, padding)

    def reflect(self, x, n):
        return self.f.pad(x, (n, n, n, n), mode="reflect")

    def double(self, x):
        return self.f.interpolate(x, scale_factor=2, mode="nearest")

    def instance_norm(self, x):
        return self.f.instance_norm(x)

    def batch_norm(self, x, mean, variance, weight, bias, training):
        return self.f.batch_norm(x, mean.clone(), variance.clone(), weight, bias, training, eps=1e-3)

    def relu(self, x):
        return self.f.relu(x)

    def sigmoid(self, x):
        return self.torch.sigmoid(x)

    def concatenate(self, xs):
        return self.torch.cat(xs, 1)

    def mean(self, x):
        return x.mean((2, 3))


def transform(tensors, pictures, z, ops):
    """Pictures [B, H, W, 3] in the styles z, as an array of the operations' library, [B, 3, H, W]."""
    p = {name: ops.array(x) for name, x in tensors.items()}
    x, z = ops.array(np.transpose(pictures, (0, 3, 1, 2))), ops.array(z)

    def style(name):
        return (z @ p[f"{name}.weight"].T + p[f"{name}.bias"])[:, :, None, None]

    def conv(x, name, stride=1):
        weight = p[f"{name}.weight"]
        return ops.conv(ops.reflect(x, weight.shape[2] // 2), weight, p[f"{name}.bias"], stride)

    count = 1 + max(int(name.split(".")[1]) for name in tensors)
    for i in range(count):
        name = f"layers.{i}"
        if i < 3:
            x = ops.relu(ops.instance_norm(conv(x, f"{name}.conv", 1 if i == 0 else 2)))
        elif i < count - 3:
            y = style(f"{name}.fc_gamma1") * ops.instance_norm(conv(x, f"{name}.conv1")) + style(f"{name}.fc_beta1")
            y = ops.instance_norm(conv(ops.relu(y), f"{name}.conv2"))
            x = x + style(f"{name}.fc_gamma2") * y + style(f"{name}.fc_beta2")
        else:
            x = ops.double(x) if i < count - 1 else x
            x = style(f"{name}.fc_gamma") * ops.instance_norm(conv(x, f"{name}.conv")) + style(f"{name}.fc_beta")
            x = ops.relu(x) if i < count - 1 else ops.sigmoid(x)
    return x


def predict(tensors, pictures, ops, *, training=False):
    """The styles of pictures [B, H, W, 3] from 0 to 1."""
    p = {name: ops.array(x) for name, x in tensors.items()}
    x = np.array(pictures, np.float64)
    constants = ((0.485, 0.229, 0.229), (0.456, 0.224, 0.224), (0.406, 0.255, 0.225))
    for channel, (mean, first, second) in enumerate(constants):
        x[..., channel] = (x[..., channel] - mean) / first * (second / 0.5) + (mean - 0.5) / 0.5
    x = ops.array(np.transpose(x, (0, 3, 1, 2)).astype(np.float32))

    def layer(x, name, stride=1, padding=(0, 0)):
        x = ops.conv(x, p[f"{name}.conv.weight"], None, stride, padding)
        norm = (p[f"{name}.bn.{kind}"] for kind in ("running_mean", "running_var", "weight", "bias"))
        return ops.relu(ops.batch_norm(x, *norm, training))

    for item in STEM:
        if item == "pool":
            x = ops.max_pool(x, 3, 2)
        else:
            name, _, stride, padding = item
            x = layer(x, name, stride, (padding, padding))
    for block, kind in BLOCKS.items():
        outputs = []
        for branch in INCEPTION[kind]:
            y = x
            for name, _, padding in branch:
                last = (name, padding) == (branch[-1][0], branch[-1][2])
                y = layer(y, f"Mixed_{block}.{name}", 2 if kind == "B" and last else 1, padding)
            outputs.append(y)
        if kind == "B":
            outputs.append(ops.max_pool(x, 3, 2))
        else:
            outputs.append(layer(ops.mean_pool(x, 3, 1, 1), f"Mixed_{block}.branch_pool"))
        x = ops.concatenate(outputs)
    return ops.mean(x) @ p["fc.weight"].T + p["fc.bias"]


VGG = []
for _block, _count in enumerate((2, 2, 4, 4, 4), 1):
    VGG += [*(f"conv{_block}_{n + 1}" for n in range(_count)), "P"]


def random_vgg(seed=0, *, width=3):
    """Tensors by torchvision's names of VGG-19, every convolution with ``width`` outputs."""
    random, tensors, place, before = np.random.default_rng(seed), {}, 0, 3
    for layer in VGG:
        if layer != "P":
            kernel = random.normal(size=(width, before, 3, 3)) * np.sqrt(2 / (9 * before))
            tensors[f"features.{place}.weight"] = kernel.astype(np.float32)
            tensors[f"features.{place}.bias"] = (0.1 * random.normal(size=width)).astype(np.float32)
            before = width
        place += 1 if layer == "P" else 2
    return tensors


def vgg(tensors, picture, ops, *, pooling):
    """Features [C, H, W] by layer of one picture [H, W, 3] from 0 to 1."""
    p = {name: ops.array(x) for name, x in tensors.items()}
    x = (np.float64(picture) - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    x, place, features = ops.array(np.transpose(x[None], (0, 3, 1, 2)).astype(np.float32)), 0, {}
    for layer in VGG:
        if layer == "P":
            x = ops.max_pool(x, 2, 2) if pooling == "max" else ops.mean_pool(x, 2, 2)
        else:
            weight, bias = (p[f"features.{place}.{kind}"] for kind in ("weight", "bias"))
            x = features[layer] = ops.relu(ops.conv(x, weight, bias, 1, (1, 1)))
        place += 1 if layer == "P" else 2
    return {layer: f[0] for layer, f in features.items()}


def gatys_loss(tensors, x, content, style, ops, *, content_layer, style_layers, alpha, beta, pooling):
    """The paper's loss, equation by equation, for a style of the picture's size."""
    new, p, a = (vgg(tensors, v, ops, pooling=pooling) for v in (x, content, style))
    loss = alpha * 0.5 * np.sum((new[content_layer] - p[content_layer]) ** 2)
    for layer in style_layers:
        f, s = (v[layer].reshape(len(v[layer]), -1) for v in (new, a))
        n, m = f.shape
        loss += beta / len(style_layers) / (4 * n**2 * m**2) * np.sum((f @ f.T - s @ s.T) ** 2)
    return loss
