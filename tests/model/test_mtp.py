"""Multi-token prediction: Eq. 21-23 with the released weights' order, in training and on the cache."""

import pytest
import torch

from dsv3.layers.cache import AttnContext
from dsv3.layers.rope import rotations
from dsv3.model.block import Block
from dsv3.model.transformer import Transformer
from tests.conftest import SmallConfig
from tests.model_helpers import assert_close, make_model, poisoned_cache, relative_error


@pytest.fixture
def model(small_config: SmallConfig) -> Transformer:
    return make_model(small_config("v3"))


def norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight


@torch.no_grad()
def test_equals_equation_21_with_the_embedding_first(model: Transformer) -> None:
    tokens_BS = torch.randint(128, (2, 8))
    h_BSD = model.hidden(tokens_BS)[:, :-1]
    ours = model.predict_next(0, h_BSD, tokens_BS[:, 1:])
    mtp = model.mtp[0]
    embedding = norm(model.embed.weight[tokens_BS[:, 1:]], mtp.enorm.weight)
    joined = torch.cat((embedding, norm(h_BSD, mtp.hnorm.weight)), -1) @ mtp.eh_proj.weight.T
    turns = rotations(torch.arange(7), model.inv_freq)
    assert_close(ours, norm(Block.forward(mtp, joined, turns), mtp.shared_head.norm.weight))
    # The order that Eq. 21 prints would be another model.
    printed = torch.cat((norm(h_BSD, mtp.hnorm.weight), embedding), -1) @ mtp.eh_proj.weight.T
    assert relative_error(Block.forward(mtp, printed, turns), Block.forward(mtp, joined, turns)) > 0.1


@torch.no_grad()
def test_input_is_normalised_by_the_main_models_last_norm(model: Transformer) -> None:
    """What the module gets is ``hidden``, behind the final norm; hnorm alone would not undo that norm's weight."""
    tokens_BS = torch.randint(128, (1, 6))
    h_BSD = model.hidden(tokens_BS)
    unscaled = h_BSD / model.norm.weight
    assert relative_error(model.predict_next(0, unscaled, tokens_BS), model.predict_next(0, h_BSD, tokens_BS)) > 0.01
    assert_close(model.predict_next(0, 3 * h_BSD, tokens_BS), model.predict_next(0, h_BSD, tokens_BS), 1e-4)


@torch.no_grad()
def test_cached_equals_whole(model: Transformer) -> None:
    """In steps, as speculation runs it: the module's own layer of the cache, at the positions of h. Two sequences."""
    tokens_BS = torch.randint(128, (2, 12))
    expected = model.predict_next(0, model.hidden(tokens_BS[:, :-1]), tokens_BS[:, 1:])
    cache = poisoned_cache(model.config, 6, 4)
    start = 0
    for count in (5, 1, 2, 3):
        ctx = AttnContext.build(cache, [[4, 0, 2], [1, 5, 3]], [start] * 2, [count] * 2)
        window = slice(start, start + count)
        h_TD = model.hidden(tokens_BS[:, window].flatten(), ctx)
        following = tokens_BS[:, start + 1 : start + count + 1].flatten()
        ours = model.predict_next(0, h_TD, following, ctx)
        assert_close(ours, expected[:, window].flatten(0, 1))
        start += count


@torch.no_grad()
def test_modules_follow_each_other(small_config: SmallConfig) -> None:
    """Module k reads module k-1 and writes layer n_layers + k of the cache, no other."""
    model = make_model(small_config("v3", n_mtp_layers=2))
    tokens_S = torch.randint(128, (9,))
    h_BSD = model.hidden(tokens_S[None, :7])
    first = model.predict_next(0, h_BSD, tokens_S[None, 1:8])
    second = model.predict_next(1, first, tokens_S[None, 2:9])
    cache = poisoned_cache(model.config, 2, 4)
    ctx = AttnContext.build(cache, [[0, 1]], [0], [7])
    h_TD = model.hidden(tokens_S[:7], ctx)
    assert cache.storage[3:].isnan().all()
    first_TD = model.predict_next(0, h_TD, tokens_S[1:8], ctx)
    assert cache.storage[3, :7].isfinite().all()
    assert cache.storage[4].isnan().all()
    assert_close(first_TD, first[0])
    assert_close(model.predict_next(1, first_TD, tokens_S[2:9], ctx), second[0])
    assert cache.storage[4, :7].isfinite().all()
    assert model.logits(second).shape == (1, 7, 128)


def test_embedding_and_head_are_the_main_models(model: Transformer) -> None:
    names = {name.split(".")[0] for name, _ in model.mtp[0].named_parameters()}
    assert names == {"enorm", "hnorm", "eh_proj", "shared_head", "attn_norm", "attn", "ffn_norm", "ffn"}
    tokens_BS = torch.randint(128, (1, 5))
    draft = model.predict_next(0, model.hidden(tokens_BS).detach(), tokens_BS)
    model.logits(draft).sum().backward()
    assert model.embed.weight.grad is not None
    assert model.head.weight.grad is not None
    # Through the embedding of the next tokens alone, which only these five ids have:
    rows = model.embed.weight.grad.norm(dim=1).nonzero().flatten().tolist()
    assert set(rows) == set(tokens_BS.flatten().tolist())


def test_the_block_has_experts_whatever_the_dense_layers(small_config: SmallConfig) -> None:
    model = make_model(small_config("v3", n_layers=1, n_dense_layers=1))
    assert hasattr(model.mtp[0].ffn, "experts")
    assert not hasattr(model.layers[0].ffn, "experts")
