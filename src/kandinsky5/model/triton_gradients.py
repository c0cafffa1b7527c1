"""`stretches` in Triton, with their gradients, for networks that learn: forward by `triton_kernels`, backward here.

One pass over memory each way. The backward pass computes norms again instead of keeping them. Vectors seldom learn
(shifts, scales, gates, the weights of head norms): where one does, its gradient is left to the eager twin, which sums
over tokens. Importing this file needs Triton. Rows of float32, bfloat16 or float16; no second derivatives.

Shapes: B batch, N tokens, D width of a row, A heads of K channels.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from kandinsky5.model.precision import LAYER_NORM_EPS, RMS_NORM_EPS
from kandinsky5.model.stretches import EAGER_STRETCHES, Stretches
from kandinsky5.model.triton_kernels import TRITON, group_of, turned, warps_of
from kandinsky5.model.triton_numbers import centred, load_row, parts_of, sum_of, sum_of_products


@triton.jit(do_not_specialize=["tokens"])
def _norm_backward(x_ptr, rows_grad_ptr, sum_grad_ptr, gate_ptr, scale_ptr, x_grad_ptr, out_grad_ptr,
                   tokens, modulation_stride, WIDTH: tl.constexpr, PARTS: tl.constexpr, PART: tl.constexpr,
                   EPS: tl.constexpr, GATED: tl.constexpr):  # fmt: skip
    """One token: from the gradients of `layer_norm(x) (1 + scale) + shift` and of `x` to that of `x`.

    With n = (x - mean(x)) s the normed row, s one over its deviation, a gradient g of n gives one of x:
    (g - mean(g) - n mean(g n)) s. Where x is a sum `x + gate out`, the gradient of x is that of its first part too, and
    times the gate that of `out`.
    """
    row = tl.program_id(0).to(tl.int64)
    modulation = (row // tokens) * modulation_stride
    place = row * WIDTH
    apart = centred(load_row(x_ptr + place, WIDTH, PARTS, PART), WIDTH, PARTS, PART)
    inverse = tl.rsqrt(sum_of_products(apart, apart, PARTS) / WIDTH + EPS)
    rows_grad = load_row(rows_grad_ptr + place, WIDTH, PARTS, PART)
    scale = load_row(scale_ptr + modulation, WIDTH, PARTS, PART)
    grad = ()
    for i in tl.static_range(PARTS):
        grad = grad + (rows_grad[i] * (1.0 + scale[i]),)  # noqa: RUF005
    mean = sum_of(grad, PARTS) / WIDTH
    along = sum_of_products(grad, apart, PARTS) * inverse * inverse / WIDTH
    for i in tl.static_range(PARTS):
        columns = i * PART + tl.arange(0, PART)
        inside = columns < WIDTH
        found = (grad[i] - mean - apart[i] * along) * inverse
        if GATED:
            found += tl.load(sum_grad_ptr + place + columns, mask=inside, other=0.0).to(tl.float32)
        tl.store(x_grad_ptr + place + columns, found.to(x_grad_ptr.dtype.element_ty), mask=inside)
        if GATED:
            found *= tl.load(gate_ptr + modulation + columns, mask=inside, other=0.0)
            tl.store(out_grad_ptr + place + columns, found.to(out_grad_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["tokens"])
def _heads_backward(x_ptr, weight_ptr, rotation_ptr, grad_ptr, x_grad_ptr, tokens, HEADS: tl.constexpr, K: tl.constexpr,
                    EPS: tl.constexpr, GROUP: tl.constexpr, ROTATE: tl.constexpr):  # fmt: skip
    """Some heads of one token: the gradient turned back, then through the RMS norm as in `_norm_backward`."""
    row = tl.program_id(0).to(tl.int64)
    heads = tl.program_id(1) * GROUP + tl.arange(0, GROUP)
    channels = tl.arange(0, K)
    inside = (heads < HEADS)[:, None]
    place = row * HEADS * K + heads[:, None] * K + channels[None]
    g = tl.load(grad_ptr + place, mask=inside, other=0.0).to(tl.float32)
    if ROTATE:
        g = turned(g, rotation_ptr + (row % tokens) * K, GROUP, K, True)
    x = tl.load(x_ptr + place, mask=inside, other=0.0).to(tl.float32)
    inverse = tl.rsqrt(tl.sum(x * x, axis=1)[:, None] / K + EPS)
    x *= inverse
    g *= tl.load(weight_ptr + channels).to(tl.float32)[None]
    g = (g - x * (tl.sum(g * x, axis=1)[:, None] / K)) * inverse
    tl.store(x_grad_ptr + place, g.to(x_grad_ptr.dtype.element_ty), mask=inside)


class _NormModulate(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        rows = TRITON.norm_modulate(x, shift, scale, False)
        assert isinstance(rows, Tensor)
        ctx.save_for_backward(x, shift, scale)
        return rows

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, rows_grad: Tensor) -> tuple[Tensor | None, ...]:
        x, shift, scale = ctx.saved_tensors
        x_grad, _ = _through_the_norm(x, rows_grad, None, None, scale)
        twin = partial(EAGER_STRETCHES.norm_modulate, x)
        return x_grad, *_of_vectors(twin, (shift, scale), ctx.needs_input_grad[1:], rows_grad)


class _AddGatedNormModulate(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gate: Tensor, out: Tensor, shift: Tensor, scale: Tensor
    ) -> tuple[Tensor, Tensor]:
        total, rows = TRITON.add_gated_norm_modulate(x, gate, out, shift, scale, False)
        assert isinstance(rows, Tensor)
        ctx.save_for_backward(total, gate, out if ctx.needs_input_grad[1] else None, shift, scale)
        return total, rows

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, sum_grad: Tensor, rows_grad: Tensor) -> tuple[Tensor | None, ...]:
        total, gate, out, shift, scale = ctx.saved_tensors
        x_grad, out_grad = _through_the_norm(total, rows_grad, sum_grad, gate, scale)
        twin = partial(EAGER_STRETCHES.norm_modulate, total)
        of_vectors = _of_vectors(twin, (shift, scale), ctx.needs_input_grad[3:], rows_grad)
        return x_grad, _of_gate(x_grad, out), out_grad, *of_vectors


class _AddGated(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: Tensor, out: Tensor) -> Tensor:
        ctx.save_for_backward(gate, out if ctx.needs_input_grad[1] else None)
        return TRITON.add_gated(x, gate, out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        gate, out = ctx.saved_tensors
        out_grad = torch.mul(grad, gate[:, None], out=torch.empty_like(grad))  # rounded as it is written
        return grad, _of_gate(grad, out), out_grad


class _NormRotate(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, rotation: Tensor | None) -> Tensor:
        x = x.contiguous()
        ctx.save_for_backward(x, weight, rotation)
        return TRITON.norm_rotate(x, weight, rotation)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, rotation = ctx.saved_tensors
        B, N, A, K = x.shape
        group, warps = group_of(A, K)
        x_grad = torch.empty_like(x)
        _heads_backward[(B * N, triton.cdiv(A, group))](
            *(x, weight, weight if rotation is None else rotation, grad.contiguous(), x_grad, N),
            HEADS=A,
            K=K,
            EPS=RMS_NORM_EPS,
            GROUP=group,
            ROTATE=rotation is not None,
            num_warps=warps,
        )

        def twin(weight: Tensor) -> Tensor:
            return EAGER_STRETCHES.norm_rotate(x, weight, rotation)

        return x_grad, *_of_vectors(twin, (weight,), ctx.needs_input_grad[1:2], grad), None


def _through_the_norm(
    x: Tensor, rows_grad: Tensor, sum_grad: Tensor | None, gate: Tensor | None, scale: Tensor
) -> tuple[Tensor, Tensor | None]:
    """The gradient of `x`, and with a gate that of what was gated and added to make it."""
    x, rows_grad = x.contiguous(), rows_grad.contiguous()
    width = x.shape[-1]
    parts, part = parts_of(width)
    x_grad = torch.empty_like(x)
    out_grad = None if gate is None else torch.empty_like(x)
    _norm_backward[(x.numel() // width,)](
        *(
            x,
            rows_grad,
            x if sum_grad is None else sum_grad.contiguous(),
            scale if gate is None else gate,
            scale,
        ),
        *(x_grad, x_grad if out_grad is None else out_grad, x.shape[1], scale.stride(0)),
        WIDTH=width,
        PARTS=parts,
        PART=part,
        EPS=LAYER_NORM_EPS,
        GATED=gate is not None,
        num_warps=warps_of(part),
    )
    return x_grad, out_grad


def _of_vectors(
    twin: Callable[..., Tensor], vectors: Sequence[Tensor], wanted: Sequence[bool], grad: Tensor
) -> list[Tensor | None]:
    """The gradients of those vectors that learn, by the stretch's eager twin as a function of the vectors alone."""
    if not any(wanted):
        return [None] * len(vectors)
    with torch.enable_grad():
        leaves = [
            vector.detach().requires_grad_(learns) for vector, learns in zip(vectors, wanted, strict=True)
        ]
        made = twin(*leaves)
    found = iter(torch.autograd.grad(made, [leaf for leaf in leaves if leaf.requires_grad], grad))
    return [next(found) if leaf.requires_grad else None for leaf in leaves]


def _of_gate(sum_grad: Tensor, out: Tensor | None) -> Tensor | None:
    """(B, D) float32, where what was gated was kept because the gate learns."""
    return None if out is None else (sum_grad.float() * out).sum(dim=1)


def _norm_rotate(x: Tensor, weight: Tensor, rotation: Tensor | None) -> Tensor:
    if triton.next_power_of_2(x.shape[-1]) != x.shape[-1]:  # as `triton_kernels`
        return EAGER_STRETCHES.norm_rotate(x, weight, rotation)
    return cast(Tensor, _NormRotate.apply(x, weight, rotation))


TRITON_STRETCHES = Stretches(
    norm_modulate=_NormModulate.apply,
    add_gated_norm_modulate=_AddGatedNormModulate.apply,
    add_gated=_AddGated.apply,
    norm_rotate=_norm_rotate,
)
