"""The latent cache in FP8: what the bytes of a cached token mean (FlashMLA's layout; 656 bytes instead of 1152).

A latent of C numbers is stored as e4m3 codes with one FP32 scale for each 128 of them, as activations are (`reference`
opens with the lesson). The R numbers of the rotated key stay in BF16: they are few, and they carry the position, where
an error of 3% would move a token to another place. For C = 512 and R = 64:

    byte   0 ... 511   512 ... 527   528 ... 655
           512 codes   4 scales      64 BF16 numbers

Rows are filled up to a multiple of 16 bytes, the largest piece that a GPU loads at once. The rows of a cache are one
uint8 tensor (slots, bytes); `views` reads its three columns by their types, without a copy.
"""

from typing import NamedTuple

import torch

from dsv3.kernels import reference
from dsv3.kernels.reference import BLOCK, E4M3, ceil_div


class LatentViews(NamedTuple):
    """codes_XC in e4m3, scales_XG in FP32, one for each 128 codes, keys_XR in BF16."""

    codes_XC: torch.Tensor
    scales_XG: torch.Tensor
    keys_XR: torch.Tensor


def row_bytes(C: int, R: int) -> int:
    if C % 4:
        raise ValueError(f"a cache in FP8 needs a latent of a multiple of 4 numbers; C is {C}")
    return 16 * ceil_div(C + 4 * ceil_div(C, BLOCK) + 2 * R, 16)


def views(bytes_Xb: torch.Tensor, C: int, R: int) -> LatentViews:
    width, groups = row_bytes(C, R), ceil_div(C, BLOCK)
    if bytes_Xb.dtype != torch.uint8 or bytes_Xb.shape[1:] != (width,) or not bytes_Xb.is_contiguous():
        raise ValueError(
            f"the cache is {bytes_Xb.dtype} {tuple(bytes_Xb.shape)}; for C = {C} and R = {R} expected contiguous uint8 "
            f"rows of {width} bytes"
        )
    scales = bytes_Xb.view(torch.float32)[:, C // 4 : C // 4 + groups]
    keys_at = C // 2 + 2 * groups
    return LatentViews(bytes_Xb[:, :C].view(E4M3), scales, bytes_Xb.view(torch.bfloat16)[:, keys_at : keys_at + R])


def pack_latents(latent_TC: torch.Tensor, key_TR: torch.Tensor) -> torch.Tensor:
    """Rows of a cache, bytes_Tb, for tokens' latents and rotated keys."""
    (T, C), R = latent_TC.shape, key_TR.shape[1]
    bytes_Tb = torch.zeros(T, row_bytes(C, R), dtype=torch.uint8, device=latent_TC.device)
    codes, scales, keys = views(bytes_Tb, C, R)
    q_TC, s_TG = reference.act_quant(latent_TC)
    codes.view(torch.uint8).copy_(q_TC.view(torch.uint8))
    scales.copy_(s_TG)
    keys.copy_(key_TR)
    return bytes_Tb


def unpack_latents(bytes_Xb: torch.Tensor, C: int, R: int) -> torch.Tensor:
    """The numbers that the rows mean, (slots, C + R) in FP32."""
    codes, scales, keys = views(bytes_Xb, C, R)
    latent_XC = codes.float() * scales.repeat_interleave(BLOCK, dim=1)[:, :C]
    return torch.cat((latent_XC, keys.float()), dim=1)
