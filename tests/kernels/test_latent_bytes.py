"""The cache's layout in FP8: which bytes mean what, and that they come back as numbers."""

import pytest
import torch

from dsv3 import kernels
from dsv3.kernels import latent_bytes
from tests.kernels.tolerances import E4M3_ROUND, E4M3_SUBNORMAL


def test_a_token_of_deepseek_v3_takes_656_bytes():
    latent, key = torch.randn(3, 512), torch.randn(3, 64).bfloat16()
    rows = kernels.pack_latents(latent, key)
    assert rows.shape == (3, kernels.row_bytes(512, 64)) == (3, 656)
    assert kernels.row_bytes(128, 32) == 208  # the embedded model's: 128 codes, 1 scale, 32 numbers, 12 bytes unused
    codes, scales = kernels.act_quant(latent)
    assert torch.equal(rows[:, :512], codes.view(torch.uint8))
    assert torch.equal(rows[:, 512:528].view(torch.float32), scales)
    assert torch.equal(rows[:, 528:].view(torch.bfloat16), key)


@pytest.mark.parametrize(("C", "R"), [(512, 64), (128, 32), (20, 7), (200, 16)])
def test_numbers_come_back(C, R):
    latent, key = torch.randn(7, C) * torch.exp2(torch.randint(-8, 9, (7, 1))), torch.randn(7, R).bfloat16()
    latent[0] = 0
    restored = kernels.unpack_latents(kernels.pack_latents(latent, key), C, R)
    scales = latent_bytes.views(kernels.pack_latents(latent, key), C, R).scales_XG.repeat_interleave(128, 1)[:, :C]
    assert ((restored[:, :C] - latent).abs() <= E4M3_ROUND * latent.abs() + E4M3_SUBNORMAL * scales).all()
    assert torch.equal(restored[:, C:], key.float())


def test_rows_of_another_width_are_refused():
    with pytest.raises(ValueError, match="656 bytes"):
        kernels.unpack_latents(torch.zeros(4, 576, dtype=torch.uint8), 512, 64)
    with pytest.raises(ValueError, match="contiguous uint8"):
        kernels.unpack_latents(torch.zeros(4, 656), 512, 64)
    with pytest.raises(ValueError, match="C is 130"):
        kernels.row_bytes(130, 64)
