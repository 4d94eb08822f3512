"""The router in two launches: logits over many programs, then each token's choice in one.

    launch 1   logits = x W^T           split over experts, and over D where there are too few of them to fill a GPU
    launch 2   scores, groups, top K, weights, and the table places_ET that the experts read (`moe_reference`)

**FP32 on tensor cores.** Near-ties decide routes, so the logits have to be FP32, and the tensor cores multiply BF16.
But x is BF16 already, with 8 significant bits, and an FP32 weight has 24: it is exactly the sum of three BF16 numbers.
Three products of BF16 are exact in FP32, and so is their sum but for the accumulator's rounding. Each block of columns
starts from zero and is added to an FP32 sum in registers, since the tensor cores truncate while they accumulate. An x
in FP32 is multiplied without tensor cores.

**Order.** Descending s + b; of equal ones the expert of lower number first, and the group of lower number. To take the
largest of E numbers and know which one it was, the number and its place are packed into one 64-bit integer that
compares the same way: the bits of a float, with the lower 31 inverted where it is negative, are ordered like the
floats; below them stands the place, counted from the end. A NaN compares as very large or very small, so K different
experts come out whatever the input holds, and nobody reads beyond the weights.

Sums over the split of D are in fixed order: the same input gives the same bits.
"""

# Triton is a language of its own: pointers have no type, and a launch passes plain numbers for constexpr parameters.
# pyright: basic
# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false

import torch
import triton
import triton.language as tl

from dsv3.kernels.chain import can_overlap, follow
from dsv3.kernels.moe_reference import Routed
from dsv3.kernels.reference import ceil_div

_FILL = 264
"""Programs that fill a GPU: two for each of an H100's 132 SMs."""

_SLICE_STEP = 128
"""D is split at multiples of this."""

_NEVER = tl.constexpr(-(2**63))
"""Below every key: a place that cannot be chosen, or was."""

_LAST = tl.constexpr(2**31 - 1)
"""Minus an expert's number, this is the lower part of its key: the lower number wins a tie."""


def route(
    x_TD: torch.Tensor,
    weight_ED: torch.Tensor,
    bias_E: torch.Tensor | None = None,
    *,
    top_k: int,
    n_groups: int = 1,
    n_limited: int = 1,
    sigmoid: bool = True,
    route_scale: float = 1.0,
) -> Routed:
    """As `moe_reference.route`."""
    (T, D), E, device = x_TD.shape, weight_ED.shape[0], x_TD.device
    weights_TK = torch.empty(T, top_k, dtype=torch.float32, device=device)
    indices_TK = torch.empty(T, top_k, dtype=torch.int64, device=device)
    places_ET = torch.empty(E, T, dtype=torch.uint8, device=device)
    if T == 0:
        return Routed(weights_TK, indices_TK, places_ET)
    block_t, block_e = (16, 16) if T <= 16 else (32, 32) if T <= 256 else (64, 64)
    slice_d, n_slices = _split(D, triton.cdiv(T, block_t) * triton.cdiv(E, block_e))
    overlap = can_overlap(x_TD)
    logits_XTE = torch.empty(n_slices, T, E, dtype=torch.float32, device=device)
    with torch.cuda.device_of(x_TD):
        _logits_kernel[(triton.cdiv(E, block_e), n_slices, triton.cdiv(T, block_t))](
            x_TD.contiguous(), weight_ED.contiguous(), logits_XTE, T, E, D, slice_d,
            BLOCK_T=block_t, BLOCK_E=block_e, BLOCK_D=128 if T <= 16 else 64, OVERLAP=overlap,
            num_warps=4, num_stages=3, launch_pdl=overlap,
        )  # fmt: skip
        _choose_kernel[(T,)](
            logits_XTE, bias_E, weights_TK, indices_TK, places_ET, T, E, n_slices, float(route_scale),
            TOP_K=top_k, GROUPS=n_groups, LIMITED=n_limited, SIGMOID=sigmoid,
            GROUPS_POW2=triton.next_power_of_2(n_groups), IN_GROUP_POW2=triton.next_power_of_2(E // n_groups),
            SLICES_POW2=triton.next_power_of_2(n_slices), OVERLAP=overlap, num_warps=1 if E <= 128 else 2,
            launch_pdl=overlap,
        )  # fmt: skip
    return Routed(weights_TK, indices_TK, places_ET)


def _split(d: int, programs: int) -> tuple[int, int]:
    """Columns of D per program, and how many programs share D: as many as fill the GPU, 16 at most."""
    blocks = ceil_div(d, _SLICE_STEP)
    wanted = max(1, min(blocks, 16, _FILL // programs))
    per_program = ceil_div(blocks, wanted)
    return per_program * _SLICE_STEP, ceil_div(blocks, per_program)


@triton.jit(do_not_specialize=["n_tokens"])
def _logits_kernel(
    x_ptr, w_ptr, logits_ptr, n_tokens, n_experts, d, slice_d,
    BLOCK_T: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_D: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    follow(OVERLAP)
    tokens = tl.program_id(2) * BLOCK_T + tl.arange(0, BLOCK_T)
    experts = tl.program_id(0) * BLOCK_E + tl.arange(0, BLOCK_E)
    first = tl.program_id(1) * slice_d
    x_ptrs = x_ptr + tokens.to(tl.int64)[:, None] * d
    w_ptrs = w_ptr + experts[None, :] * d
    acc = tl.zeros((BLOCK_T, BLOCK_E), dtype=tl.float32)
    for start in range(first, tl.minimum(first + slice_d, d), BLOCK_D):
        columns = start + tl.arange(0, BLOCK_D)
        x = tl.load(x_ptrs + columns[None, :], mask=(tokens < n_tokens)[:, None] & (columns < d)[None, :], other=0.0)
        w = tl.load(w_ptrs + columns[:, None], mask=(experts < n_experts)[None, :] & (columns < d)[:, None], other=0.0)
        if x_ptr.dtype.element_ty == tl.bfloat16:
            w = w.to(tl.float32)
            high = w.to(tl.bfloat16)
            middle = (w - high.to(tl.float32)).to(tl.bfloat16)
            low = (w - high.to(tl.float32) - middle.to(tl.float32)).to(tl.bfloat16)
            acc += tl.dot(x, low, tl.dot(x, middle)) + tl.dot(x, high)
        else:
            acc += tl.dot(x.to(tl.float32), w.to(tl.float32), input_precision="ieee")
    to = logits_ptr + (tl.program_id(1) * n_tokens + tokens).to(tl.int64)[:, None] * n_experts + experts[None, :]
    tl.store(to, acc, mask=(tokens < n_tokens)[:, None] & (experts < n_experts)[None, :])


@triton.jit
def _sortable(x):
    """FP32 -> int64 in the same order, with 32 free bits below."""
    bits = x.to(tl.int32, bitcast=True)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.int64) << 32


@triton.jit
def _number(key):
    """The FP32 number that a key was made of."""
    bits = (key >> 32).to(tl.int32)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def _is_open(key_GX, GROUPS: tl.constexpr, LIMITED: tl.constexpr, BIASED: tl.constexpr):
    """Whether each of the (padded) groups is among the LIMITED best."""
    best_G = tl.max(key_GX, axis=1)
    worth_G = _number(best_G)
    if BIASED:
        worth_G += _number(tl.max(tl.where(key_GX == best_G[:, None], _NEVER, key_GX), axis=1))
    groups = tl.arange(0, key_GX.shape[0])
    left_G = tl.where(groups < GROUPS, _sortable(worth_G) + (_LAST - groups), _NEVER)
    open_G = groups < 0
    for _ in tl.static_range(LIMITED):
        chosen_G = left_G == tl.max(left_G, axis=0)
        open_G = open_G | chosen_G
        left_G = tl.where(chosen_G, _NEVER, left_G)
    return open_G


@triton.jit(do_not_specialize=["n_tokens", "n_slices"])
def _choose_kernel(
    logits_ptr, bias_ptr, weights_ptr, indices_ptr, places_ptr, n_tokens, n_experts, n_slices, route_scale,
    TOP_K: tl.constexpr, GROUPS: tl.constexpr, LIMITED: tl.constexpr, SIGMOID: tl.constexpr,
    GROUPS_POW2: tl.constexpr, IN_GROUP_POW2: tl.constexpr, SLICES_POW2: tl.constexpr,
    OVERLAP: tl.constexpr,
):  # fmt: skip
    """One token. Experts lie in GROUPS_POW2 x IN_GROUP_POW2 lanes, of which those beyond the real sizes are idle."""
    follow(OVERLAP)
    token = tl.program_id(0).to(tl.int64)
    lanes = tl.arange(0, GROUPS_POW2 * IN_GROUP_POW2)
    in_group = n_experts // GROUPS
    experts = lanes // IN_GROUP_POW2 * in_group + lanes % IN_GROUP_POW2
    real = (lanes // IN_GROUP_POW2 < GROUPS) & (lanes % IN_GROUP_POW2 < in_group)

    slices = tl.arange(0, SLICES_POW2)[:, None]
    parts = logits_ptr + (slices * n_tokens + token) * n_experts + experts[None, :]
    logits = tl.sum(tl.load(parts, mask=(slices < n_slices) & real[None, :], other=0.0), axis=0)
    if SIGMOID:
        scores = 1.0 / (1.0 + tl.exp(-logits))
    else:
        logits = tl.where(real, logits, float("-inf"))
        powers = tl.exp(logits - tl.max(logits, axis=0))
        scores = powers / tl.sum(powers, axis=0)
    choice = scores
    if bias_ptr is not None:
        choice += tl.load(bias_ptr + experts, mask=real, other=0.0)
    tie = _LAST - experts
    key = tl.where(real, _sortable(choice) + tie, _NEVER)
    if GROUPS > 1:
        open_G = _is_open(tl.reshape(key, (GROUPS_POW2, IN_GROUP_POW2)), GROUPS, LIMITED, bias_ptr is not None)
        is_open = tl.reshape(tl.broadcast_to(open_G[:, None], (GROUPS_POW2, IN_GROUP_POW2)), lanes.shape)
        closed = _sortable(tl.full(lanes.shape, float("-inf"), tl.float32)) + tie
        key = tl.where(real & (is_open == 0), closed, key)

    place = tl.zeros(lanes.shape, dtype=tl.int32)
    for k in tl.static_range(TOP_K):
        chosen = key == tl.max(key, axis=0)
        place = tl.where(chosen, k + 1, place)
        key = tl.where(chosen, _NEVER, key)
    weights = scores
    if SIGMOID:
        weights = scores / tl.sum(tl.where(place > 0, scores, 0.0), axis=0)
    to = token * TOP_K + place - 1
    tl.store(weights_ptr + to, weights * route_scale, mask=place > 0)
    tl.store(indices_ptr + to, experts.to(tl.int64), mask=place > 0)
    tl.store(places_ptr + experts.to(tl.int64) * n_tokens + token, place.to(tl.uint8), mask=real)
