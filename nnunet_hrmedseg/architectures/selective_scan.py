"""The selective scan of Mamba (arXiv 2312.00752, section 3.2) in plain torch, with little memory.

A scan that autograd follows keeps the state of every token, N numbers for each channel, several times over. Here the
tokens are worked on block by block, only the state in front of each block is kept, and the backward pass computes a
block's states again from it. Within a block, pieces of about sqrt(L) tokens are scanned side by side, then joined:
some 2 sqrt(L) steps on large tensors in the place of L steps on small ones. Nothing is ever divided by a product of
decays, so that long sequences and fast decays are as exact as short ones.
"""

from __future__ import annotations

from itertools import pairwise
from math import ceil, isqrt
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["selective_scan"]

ELEMENTS_OF_A_BLOCK = {"cpu": 2**18, "cuda": 2**21}
"""Tokens x state x channels x batch of a block: what a processor's cache holds, or what keeps a GPU busy."""


def selective_scan(x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """y_t = C_t h_t + D x_t,  h_t = exp(delta_t A) h_{t-1} + delta_t B_t x_t,  h_0 = 0, for each channel.

    Gradients can be taken once, not twice. All tensors are of one type, float32 or float64.

    Args:
        x: input (B, L, E).
        delta: step sizes (B, L, E).
        a: A, decays of the N states of each channel, negative (E, N).
        b: B, input into the state (B, L, N).
        c: C, output from the state (B, L, N).
        d: D (E).

    Returns:
        y (B, L, E).
    """
    x, delta, a, b, c, d = (tensor.contiguous() for tensor in (x, delta, a, b, c, d))
    return scan_forward(x, delta, a, b, c, d)[0]


# Operators of their own: the compiler would unroll every step, and counting with fake tensors go through all of them.
# What goes in and comes out is contiguous; inside, states are laid out as (B, L, N, E), the long axis last.
@torch.library.custom_op(
    "hrmedseg::selective_scan",
    mutates_args=(),
    schema="(Tensor x, Tensor delta, Tensor a, Tensor b, Tensor c, Tensor d) -> (Tensor, Tensor)",
)
def scan_forward(x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    """y, and the state in front of each block (blocks, B, N, E)."""
    state = x.new_zeros(x.shape[0], a.shape[1], a.shape[0])
    states, y = [], x * d
    for block in blocks(x, a):
        states.append(state)
        decay, h = decay_and_input(x[:, block], delta[:, block], a, b[:, block])
        h = recurrence_(decay, h, state)
        state = h[:, -1].clone()
        y[:, block] += h.mul_(c[:, block, :, None]).sum(2)
    return y, torch.stack(states)


@torch.library.custom_op(
    "hrmedseg::selective_scan_backward",
    mutates_args=(),
    schema="(Tensor gy, Tensor x, Tensor delta, Tensor a, Tensor b, Tensor c, Tensor d, Tensor states)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def scan_backward(
    gy: Tensor, x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor, states: Tensor
) -> tuple[Tensor, ...]:
    """Gradients of x, delta, a, b, c, d, from that of y and the states in front of the blocks."""
    gy = gy.contiguous()
    gx, gdelta, gb, gc = gy * d, torch.empty_like(delta), torch.empty_like(b), torch.empty_like(c)
    ga, inputs = torch.zeros_like(a), delta * x
    behind = torch.zeros_like(states[0])  # the gradient of a block's last state from all that follows the block
    for state, block in reversed(list(zip(states, blocks(x, a), strict=True))):
        decay, h = decay_and_input(x[:, block], delta[:, block], a, b[:, block])
        # dL/dh_t = C_t dL/dy_t + decay_{t+1} dL/dh_{t+1}: a recurrence from the end
        following = decay.roll(-1, 1)
        following[:, -1] = 1.0
        gh = recurrence_(following, gy[:, block, None] * c[:, block, :, None], behind, backwards=True)
        behind = decay[:, 0] * gh[:, 0]
        g_of_exponent = gh * decay
        h = recurrence_(decay, h, state)
        g_of_exponent[:, 0] *= state
        g_of_exponent[:, 1:] *= h[:, :-1]

        gc[:, block] = h.mul_(gy[:, block, None]).sum(3)
        gb[:, block] = (gh * inputs[:, block, None]).sum(3)
        g_of_input = gh.mul_(b[:, block, :, None]).sum(2)
        gx[:, block] += g_of_input * delta[:, block]
        gdelta[:, block] = (g_of_exponent * a.t()).sum(2).addcmul_(g_of_input, x[:, block])
        ga += g_of_exponent.mul_(delta[:, block, None]).sum((0, 1)).t()
    return gx, gdelta, ga, gb, gc, (gy * x).sum((0, 1))


@scan_forward.register_fake
def _(x, delta, a, b, c, d):
    return torch.empty_like(x), x.new_empty(len(blocks(x, a)), x.shape[0], a.shape[1], a.shape[0])


@scan_backward.register_fake
def _(gy, x, delta, a, b, c, d, states):
    return tuple(map(torch.empty_like, (x, delta, a, b, c, d)))


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, output[1])


def _gradients(ctx: Any, gy: Tensor, _of_states: Tensor) -> tuple[Tensor, ...]:
    return scan_backward(gy, *ctx.saved_tensors)


scan_forward.register_autograd(_gradients, setup_context=_save)


def blocks(x: Tensor, a: Tensor) -> list[slice]:
    """Slices of the sequence, of which each is worked on at once. x: (B, L, E). a: (E, N)."""
    batch, length, _ = x.shape
    elements = ELEMENTS_OF_A_BLOCK["cpu" if x.device.type == "cpu" else "cuda"]
    of_a_block = max(1, isqrt(elements // (batch * a.numel()))) ** 2  # a square number needs no padding
    return [slice(start, min(start + of_a_block, length)) for start in range(0, length, of_a_block)]


def decay_and_input(x: Tensor, delta: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """exp(delta A) and delta B x, (B, L, N, E) both."""
    return (delta[:, :, None] * a.t()).exp_(), (delta * x)[:, :, None] * b[..., None]


def recurrence_(decay: Tensor, h: Tensor, state: Tensor, *, backwards: bool = False) -> Tensor:
    """h_t <- decay_t h_{t-1} + h_t along axis 1, from h_{-1} = state; or backwards: h_t <- decay_t h_{t+1} + h_t.

    decay, h: (B, L, N, E), both overwritten. state: (B, N, E).
    """
    length = h.shape[1]
    steps = isqrt(length - 1) + 1
    pieces = ceil(length / steps)
    if pieces * steps > length:
        padding = (0, 0, 0, 0, 0, pieces * steps - length)
        decay, h = F.pad(decay, padding, value=1.0), F.pad(h, padding)
    decay, h = decay.unflatten(1, (pieces, steps)), h.unflatten(1, (pieces, steps))
    direction = -1 if backwards else 1
    # all pieces at once, each as if nothing stood in front of it
    for (decay_before, h_before), (decay_here, h_here) in pairwise(pairs(decay, h, 2)[::direction]):
        h_here.addcmul_(decay_here, h_before)
        decay_here.mul_(decay_before)
    # and what stood in front of it
    for decay_of_piece, h_of_piece in pairs(decay, h, 1)[::direction]:
        h_of_piece.addcmul_(decay_of_piece, state[:, None])
        state = h_of_piece[:, 0 if backwards else -1]
    return h.flatten(1, 2)[:, :length]


def pairs(decay: Tensor, h: Tensor, axis: int) -> list[tuple[Tensor, Tensor]]:
    """Both tensors taken apart along an axis, side by side."""
    return list(zip(decay.unbind(axis), h.unbind(axis), strict=True))
