"""FP8 with block scales, in plain torch: the numerical contract of every kernel in this package.

**Why blocks.** E4M3 keeps four significant bits and reaches from 2^-9 to 448, so a tensor must be scaled into that
window before it is cast. With one scale for the whole tensor a single outlier pushes everything else towards the
subnormals, where bits are lost. DeepSeek-V3 (arXiv 2412.19437, section 3.3.2) therefore gives a scale to

  * every **1x128 tile of an activation** (one token, 128 channels): outliers differ from token to token;
  * every **128x128 block of a weight**: weights are smoother, and a square block serves `x @ w.T` and its transpose.

A scale is `s = amax(block) / 448`, the codes are `q = round_e4m3(x / s)`, and the value they stand for is `q * s`.
`round_e4m3` is round to nearest, ties to even, with a relative error of at most 2^-4 for normal codes (three stored
bits).

**ue8m0.** DeepSeek-V3.1 rounds `s` up to a power of two (8 exponent bits, no sign, no mantissa). Multiplying by such a
scale is exact, at the price of using as little as half of the range: the largest code lies in [224, 448].

**Edges.** A dimension that is no multiple of 128 (10944 of the 16B model, 576 of `wkv_a`) ends in a smaller block;
its scale sees only the elements that exist, the same as padding with zeros. The amax is clamped from below at 1e-4,
so a block of zeros has a finite scale and quantises to zeros, and no scale is so small that `x / s` overflows.

**Why the product is promoted every 128.** Scales vary along K, so a dot product of K terms is a sum over blocks k of
`a_s[m, k] * b_s[n, k] * (a_q[m, k] . b_q[n, k])`. Hopper's tensor cores keep only about 14 bits while they accumulate
FP8 products (section 3.3.2: nearly 2% error at K = 4096), so each block's sum is moved to an FP32 accumulator, which
is also the moment to apply the two scales: promotion costs nothing extra.

Shapes here: M rows, N outputs, K inputs (of a GEMM, not the letters of the model), `...` any leading dimensions.
"""

import torch
import torch.nn.functional as F

BLOCK = 128
"""Side of a scale block, in elements: fixed by the released weights."""

E4M3 = torch.float8_e4m3fn
E4M3_MAX = 448.0

E4M3_MAX_RECIPROCAL = 1.0 / E4M3_MAX
"""Scales are made with a multiplication by this value rounded to FP32, not with a division: on a GPU the official
kernels' `amax / 448` compiles to that, and bit-equal codes need bit-equal scales."""

AMAX_FLOOR = 1e-4
"""Smallest amax a scale is made from, also the official kernels' value."""

SCALE_FORMATS = (None, "ue8m0")


# --- the operations -------------------------------------------------------------------------------------------------


def act_quant(x: torch.Tensor, block: int = BLOCK, scale_fmt: str | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantise `x` (..., K) in tiles of 1 x `block` along the last dimension.

    Returns the codes `q` (..., K) in e4m3 and the scales `s` (..., ceil(K/block)) in FP32, with x ~ q * s.
    """
    check_quant_input(x, block, scale_fmt, min_dim=1)
    width = x.shape[-1]
    tiles = _pad_to(x.float(), block, dims=1).unflatten(-1, (-1, block))
    scale = _scale(tiles.abs().amax(-1), scale_fmt)
    codes = (tiles / scale.unsqueeze(-1)).flatten(-2)[..., :width].to(E4M3)
    return codes.contiguous(), scale


def weight_quant(
    w: torch.Tensor, block: int = BLOCK, scale_fmt: str | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantise `w` (..., N, K) in blocks of `block` x `block`; leading dimensions (stacked experts) are independent.

    Returns the codes `q` (..., N, K) in e4m3 and the scales `s` (..., ceil(N/block), ceil(K/block)) in FP32. `s` is
    what checkpoints call `weight_scale_inv`: the factor that restores the weight, w ~ q * s."""
    check_quant_input(w, block, scale_fmt, min_dim=2)
    blocks = _to_blocks(w.float(), block)
    scale = _scale(blocks.abs().amax((-3, -1)), scale_fmt)
    codes = _from_blocks(blocks / _spread(scale), w.shape[-2:]).to(E4M3)
    return codes.contiguous(), scale


def weight_dequant(
    q: torch.Tensor, s: torch.Tensor, block: int = BLOCK, dtype: torch.dtype = torch.bfloat16
) -> torch.Tensor:
    """Restore w (..., N, K) = q * s from codes and block scales; the product is formed in FP32 and rounded once."""
    check_dequant_input(q, s, block)
    blocks = _to_blocks(q.float(), block) * _spread(s)
    return _from_blocks(blocks, q.shape[-2:]).to(dtype).contiguous()


def fp8_gemm(
    a: torch.Tensor,
    a_s: torch.Tensor,
    b: torch.Tensor,
    b_s: torch.Tensor,
    out_dtype: torch.dtype = torch.bfloat16,
) -> torch.Tensor:
    """a (..., K) @ b (N, K).T -> (..., N), both in e4m3, with `a_s` (..., ceil(K/128)) and `b_s` (ceil(N/128),
    ceil(K/128)).

    The accumulator is FP32. Within a block of 128 a GPU kernel may sum in another order, or with fewer bits (see
    above); tests compare within a tolerance. The products themselves are exact in FP32 (and in TF32): a code has four
    bits."""
    check_gemm_input(a, a_s, b, b_s)
    (*lead, width), n = a.shape, b.shape[0]
    a_MK, a_s_Mk = a.reshape(-1, width), a_s.reshape(-1, a_s.shape[-1])
    b_s_Nk = b_s.repeat_interleave(BLOCK, 0)[:n]
    y_MN = torch.zeros(a_MK.shape[0], n, dtype=torch.float32, device=a.device)
    for k, start in enumerate(range(0, width, BLOCK)):
        columns = slice(start, start + BLOCK)
        partial_MN = a_MK[:, columns].float() @ b[:, columns].float().T
        y_MN += partial_MN * a_s_Mk[:, k, None] * b_s_Nk[None, :, k]
    return y_MN.to(out_dtype).reshape(*lead, n)


def fp8_linear(x: torch.Tensor, w: torch.Tensor, w_s: torch.Tensor, scale_fmt: str | None = None) -> torch.Tensor:
    """x (..., K) in any float type, quantised 1x128, times codes w (N, K).T and their scales -> (..., N) like x."""
    return fp8_gemm(*act_quant(x, scale_fmt=scale_fmt), w, w_s, x.dtype)


def add_rms_norm(
    h_TD: torch.Tensor, x_TD: torch.Tensor, weight_D: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The residual and the norm behind it: h + x, and that sum / sqrt(mean of its squares + eps) * weight.

    The sum is rounded to the type of h before the norm; inside, the norm is FP32."""
    sum_TD = h_TD + x_TD
    return sum_TD, F.rms_norm(sum_TD, weight_D.shape, weight_D, eps)


def latent_attention(
    q_latent_THC: torch.Tensor,
    q_pe_THR: torch.Tensor,
    latents_Xc: torch.Tensor,
    page_table_BP: torch.Tensor,
    kv_lens_B: torch.Tensor,
    *,
    page_size: int,
    scale: float,
) -> torch.Tensor:
    """MLA in its absorbed form over a paged cache -> o_THC, in FP32 inside. T = B * S: S query tokens per sequence.

    latents_Xc: one layer's cache (slots, C + R): latent, then rotated key. page_table_BP: each sequence's pages, in
    order, whatever fills its row behind them. kv_lens_B: cached tokens of each, the queries' own included; the s-th of
    S queries sees all but the last S - 1 - s. 0 tokens: the result is 0.
    """
    (T, _, C), B = q_latent_THC.shape, len(kv_lens_B)
    S = T // B
    o_THC = torch.zeros_like(q_latent_THC)
    for b, kv_len in enumerate(kv_lens_B.tolist()):
        places_L = torch.arange(kv_len, device=latents_Xc.device)
        latents_Lc = latents_Xc[
            page_table_BP[b, places_L // page_size].long() * page_size + places_L % page_size
        ].float()
        for s in range(S):
            seen_Lc, t = latents_Lc[: max(0, kv_len - (S - 1 - s))], b * S + s
            q_Hc = torch.cat((q_latent_THC[t], q_pe_THR[t]), dim=-1).float()
            if len(seen_Lc):
                probs_HL = (q_Hc @ seen_Lc.T * scale).softmax(dim=-1)
                o_THC[t] = (probs_HL @ seen_Lc[:, :C]).to(o_THC.dtype)
    return o_THC


# --- scales and blocks ----------------------------------------------------------------------------------------------


def _scale(amax: torch.Tensor, scale_fmt: str | None) -> torch.Tensor:
    scale = amax.clamp_min(AMAX_FLOOR) * E4M3_MAX_RECIPROCAL
    return ceil_pow2(scale) if scale_fmt == "ue8m0" else scale


def ceil_pow2(s: torch.Tensor) -> torch.Tensor:
    """The least power of two that is >= `s`, for positive normal FP32. Works on the bits: adding all ones below the
    exponent carries into it unless the mantissa is already zero. A logarithm would be off by one where it rounds
    across an integer."""
    return ((s.view(torch.int32) + 0x7FFFFF) & 0x7F800000).view(torch.float32)


def _pad_to(x: torch.Tensor, block: int, dims: int) -> torch.Tensor:
    """Zeros after the last `dims` dimensions, up to multiples of `block`. Zeros never raise an amax."""
    missing = [-x.shape[-1 - d] % block for d in range(dims)]
    return F.pad(x, [p for m in missing for p in (0, m)]) if any(missing) else x


def _to_blocks(w: torch.Tensor, block: int) -> torch.Tensor:
    """(..., N, K) -> (..., N/block, block, K/block, block), padded with zeros."""
    return _pad_to(w, block, dims=2).unflatten(-1, (-1, block)).unflatten(-3, (-1, block))


def _from_blocks(blocks: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Inverse of `_to_blocks`; `shape` is (N, K)."""
    return blocks.flatten(-2).flatten(-3, -2)[..., : shape[0], : shape[1]]


def _spread(scale: torch.Tensor) -> torch.Tensor:
    """(..., n, k) -> (..., n, 1, k, 1), to broadcast over blocks."""
    return scale.unsqueeze(-2).unsqueeze(-1)


# --- argument checks, shared with the Triton kernels: a kernel reads where a wrong shape points it ------------------


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def check_quant_input(x: torch.Tensor, block: int, scale_fmt: str | None, min_dim: int) -> None:
    _check_block(block)
    if scale_fmt not in SCALE_FORMATS:
        raise ValueError(f"scale_fmt is {scale_fmt!r}; expected one of {SCALE_FORMATS}")
    if x.dim() < min_dim:
        raise ValueError(f"the tensor to quantise has shape {tuple(x.shape)}; expected at least {min_dim} dimension(s)")
    if not x.is_floating_point() or x.element_size() < 2:
        raise TypeError(f"the tensor to quantise is {x.dtype}; expected float32, bfloat16, float16 or float64")


def check_dequant_input(q: torch.Tensor, s: torch.Tensor, block: int) -> None:
    _check_block(block)
    _check_codes("q", q)
    if q.dim() < 2:
        raise ValueError(f"q has shape {tuple(q.shape)}; expected (..., N, K)")
    n, k = q.shape[-2:]
    _check_scales("s", s, q, (*q.shape[:-2], ceil_div(n, block), ceil_div(k, block)))


def check_gemm_input(a: torch.Tensor, a_s: torch.Tensor, b: torch.Tensor, b_s: torch.Tensor) -> None:
    _check_codes("a", a)
    _check_codes("b", b)
    if a.dim() < 1 or b.dim() != 2 or a.shape[-1] != b.shape[1]:
        raise ValueError(
            f"a is {tuple(a.shape)} and b is {tuple(b.shape)}; expected a (..., K) and b (N, K) with the same K"
        )
    if a.device != b.device:
        raise ValueError(f"a is on {a.device} and b is on {b.device}; move them to one device")
    n, k = b.shape
    _check_scales("a_s", a_s, a, (*a.shape[:-1], ceil_div(k, BLOCK)))
    _check_scales("b_s", b_s, b, (ceil_div(n, BLOCK), ceil_div(k, BLOCK)))


def _check_block(block: int) -> None:
    if block < 1 or block & (block - 1):
        raise ValueError(f"block is {block}; expected a power of two (released weights use {BLOCK})")


def _check_codes(name: str, q: torch.Tensor) -> None:
    if q.dtype != E4M3:
        raise TypeError(f"{name} is {q.dtype}; expected {E4M3} codes (quantise it first, or view raw bytes as e4m3)")


def _check_scales(name: str, s: torch.Tensor, q: torch.Tensor, shape: tuple[int, ...]) -> None:
    if s.dtype != torch.float32:
        raise TypeError(f"{name} is {s.dtype}; expected float32 scales")
    if tuple(s.shape) != shape:
        raise ValueError(
            f"{name} has shape {tuple(s.shape)}; codes of shape {tuple(q.shape)} need scales of shape {shape}"
        )
    if s.device != q.device:
        raise ValueError(f"{name} is on {s.device} and its codes are on {q.device}; move them to one device")
