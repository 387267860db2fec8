"""Parity of our networks on GPU and CPU. Part of gpu_check.py."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

# These limits were set from float16 on a CPU and have not been tried on a GPU yet.
GRADIENT_ERROR = {"float32": 0.005, "float16": 0.03}  # relative, after some training steps
COSINE_AT_RANDOM_WEIGHTS = 0.9  # float16: a ReLU of values near 0 makes single gradients differ by up to 20 %


def parity(name: str) -> dict[str, Any]:
    """Compare logits, loss and gradients: CPU in float32, GPU in float32, GPU as nnU-Net trains (float16).

    First with random weights, then after 20 steps of training on the CPU.
    """
    from nnunet_hrmedseg.architectures.layers import DropPath
    from nnunet_hrmedseg.evaluation.benchmark.networks import CONTENDERS

    dimensions = CONTENDERS[name].dimensions
    side, channels = (128, 3) if dimensions == 2 else (64, 1)
    data, target = discs(2, side, dimensions=dimensions, channels=channels)

    def build() -> tuple[nn.Module, Callable]:
        trained = CONTENDERS[name].build(channels, 3, side)
        for module in trained.network.modules():  # random masks would differ between passes
            if isinstance(module, DropPath):
                module.rate = 0.0
            elif isinstance(module, nn.Dropout):
                module.p = 0.0
        return trained.network.train(), trained.loss

    torch.manual_seed(0)
    network, loss = build()
    found: dict[str, Any] = {}
    with exact_float32():
        for stage in ("random", "trained"):
            if stage == "trained":
                optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
                for _ in range(20):
                    optimizer.zero_grad()
                    loss(network(data), target).backward()
                    optimizer.step()
            found[stage] = differences(network, build, data, target)
    trained, random = found["trained"], found["random"]
    for precision, limit in GRADIENT_ERROR.items():
        assert trained[precision]["gradient_error"] < limit, (precision, trained[precision], limit)
    assert random["float32"]["gradient_error"] < GRADIENT_ERROR["float16"], random
    assert random["float16"]["gradient_cosine"] > COSINE_AT_RANDOM_WEIGHTS, random
    assert trained["float16"]["other_pixels"] < 1e-3, trained
    return found


def differences(network: nn.Module, build: Callable, data: Tensor, target: Tensor) -> dict[str, dict[str, float]]:
    """Return the differences between the GPU, by precision, and the CPU in float32."""
    expected_loss, expected, expected_logits = evaluated(network, build, data, target, "cpu", False)
    result = {}
    for precision, amp in (("float32", False), ("float16", True)):
        value, gradient, logits = evaluated(network, build, data, target, "cuda", amp)
        assert gradient.isfinite().all(), f"gradients in {precision} are not finite"
        result[precision] = {
            "loss_difference": abs(value - expected_loss),
            "gradient_error": float((gradient - expected).norm() / expected.norm()),
            "gradient_cosine": float(torch.dot(gradient, expected) / gradient.norm() / expected.norm()),
            "logit_error": float((logits - expected_logits).abs().max() / expected_logits.std()),
            "other_pixels": float((logits.argmax(1) != expected_logits.argmax(1)).float().mean()),
        }
    return result


def evaluated(network: nn.Module, build: Callable, data: Tensor, target: Tensor, device: str, amp: bool):
    """Return loss, all gradients in one vector, and predicted logits, for a copy of the network on the device."""
    copy, loss = build()
    copy.load_state_dict(network.state_dict())
    copy.to(device)
    data, target = data.to(device), target.to(device)
    scale = 2.0**16 if amp else 1.0  # initial scale of GradScaler
    with torch.autocast(device, enabled=amp):
        value = loss(copy(data), target)
    (value * scale).backward()
    gradient = torch.cat([p.grad.flatten().cpu() for p in copy.parameters() if p.grad is not None]).double() / scale
    copy.eval()
    with torch.no_grad(), torch.autocast(device, enabled=amp):
        logits = copy(data).float().cpu()
    return value.item(), gradient, logits


@contextmanager
def exact_float32():
    """Disable TensorFloat-32, whose errors of a thousandth would hide mistakes."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def student_parity() -> dict[str, Any]:
    """Compare the student of `hrmedseg encoder distill` (encoder, neck, finer levels) on CPU and GPU."""
    from nnunet_hrmedseg.weights.student import Student, encoder_architecture

    architecture = {**encoder_architecture(), "fine_channels": [32, 64]}

    def build() -> tuple[nn.Module, Callable]:
        return Student(architecture, drop_path=0.0).train(), lambda output, target: (output - target).square().mean()

    torch.manual_seed(0)
    network, _ = build()
    data = discs(2, 128)[0]
    with torch.no_grad():
        target = torch.randn_like(network(data))
    with exact_float32():
        found = differences(network, build, data, target)
    assert found["float32"]["gradient_error"] < GRADIENT_ERROR["float16"], found
    assert found["float16"]["gradient_cosine"] > COSINE_AT_RANDOM_WEIGHTS, found
    return found


def discs(images: int, side: int, *, dimensions: int = 2, channels: int = 3) -> tuple[Tensor, Tensor]:
    """Return noisy discs inside discs, three classes, that a network learns in a few steps."""
    random = torch.Generator().manual_seed(1)
    axes = torch.meshgrid(*[torch.arange(side)] * dimensions, indexing="ij")
    data, target = [], []
    for _ in range(images):
        center = torch.rand(dimensions, generator=random) * side / 2 + side / 4
        distance = sum((axis - c) ** 2 for axis, c in zip(axes, center, strict=True)).sqrt()
        labels = (distance < side / 4).short() + (distance < side / 8).short()
        data.append(labels - 0.5 + 0.3 * torch.randn(channels, *[side] * dimensions, generator=random))
        target.append(labels[None])
    return torch.stack(data), torch.stack(target)
