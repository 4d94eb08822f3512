"""Recomputing norms and up-projections: less is kept, the gradients are the same bits, every gate is heard once."""

import copy
import dataclasses
import warnings
import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dsv3.model.transformer import Transformer
from dsv3.train.balance import Router
from dsv3.train.loss import language_losses
from dsv3.train.recompute import Recipes, recompute
from dsv3.train.trainer import Trainer


class Allocated(TorchDispatchMode):
    """Bytes of what was computed within the block and still exists, the model's own tensors aside."""

    def __init__(self, model):
        super().__init__()
        self.storages = weakref.WeakSet()
        self.own = {tensor.untyped_storage().data_ptr() for tensor in model.state_dict().values()}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.storages.add(tensor.untyped_storage())
        return result

    @property
    def bytes(self) -> int:
        return sum(storage.nbytes() for storage in self.storages if storage.data_ptr() not in self.own)


@pytest.fixture
def pair(small_config):
    """A function: the same random model twice, the second one recomputing; and tokens with documents."""

    def make(name="v3", dtype=torch.float32, **changes):
        torch.manual_seed(0)
        config = small_config(name, **changes)
        plain = Transformer(config, dtype=dtype)
        plain.reset_parameters(0.1)
        lean = copy.deepcopy(plain)
        recompute(lean)
        tokens_BS = torch.randint(config.vocab_size, (2, 40 + config.n_mtp_layers))
        documents_BS = (torch.arange(tokens_BS.shape[1]) > 17).long().expand(2, -1)
        return plain, lean, tokens_BS, documents_BS

    return make


def gradients(model, tokens_BS, documents_BS):
    losses = language_losses(model, tokens_BS, documents_BS)
    (losses.main + 0.3 * losses.mtp).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("changes", [{}, {"n_mtp_layers": 2}, {"q_lora_rank": 0}, {"n_shared_experts": 0}])
@pytest.mark.parametrize("packed", [True, False])
def test_the_gradients_are_the_same_bits(pair, dtype, changes, packed):
    plain, lean, tokens_BS, documents_BS = pair(dtype=dtype, **changes)
    documents_BS = documents_BS if packed else None
    want, got = (gradients(model, tokens_BS, documents_BS) for model in (plain, lean))
    assert want.keys() == got.keys()
    for name in want:
        assert torch.equal(got[name], want[name]), name


def test_softmax_gates_too(pair):
    plain, lean, tokens_BS, documents_BS = pair("v2", n_mtp_layers=0)
    want, got = (gradients(model, tokens_BS, documents_BS) for model in (plain, lean))
    assert all(torch.equal(got[name], want[name]) for name in want)


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 0.65), (torch.bfloat16, 0.65)])
def test_less_is_kept_for_the_backward_pass(pair, dtype, most):
    # The proportions of V3, where heads are wide and the latents narrow.
    plain, lean, tokens_BS, documents_BS = pair(
        dtype=dtype, dim=128, n_heads=8, qk_nope_head_dim=32, v_head_dim=32, moe_inter_dim=16, n_activated_experts=2,
        n_limited_groups=2,
    )  # fmt: skip
    kept = []
    for model in (plain, lean):
        with Allocated(model) as allocated:
            losses = language_losses(model, tokens_BS, documents_BS)
        kept.append(allocated.bytes)
        del losses
    assert kept[1] < most * kept[0]


def test_nothing_outlives_the_backward_pass(pair):
    *models, tokens_BS, documents_BS = pair()
    left = []
    for model in models:
        with Allocated(model) as allocated:
            losses = language_losses(model, tokens_BS, documents_BS)
            (losses.main + losses.mtp).backward()
            model.zero_grad()
            del losses
        left.append(allocated.bytes)
    assert left[1] == left[0]


def test_every_gate_is_heard_once(pair):
    plain, lean, tokens_BS, documents_BS = pair()
    loads = []
    for model in (plain, lean):
        router = Router(model, model.config)
        with router.listen() as heard:  # open during the backward pass as well
            losses = language_losses(model, tokens_BS, documents_BS)
            (losses.main + losses.mtp + router.balance_loss(heard, 2)).backward()
        assert len(heard.indices_TK) == len(router.names)
        loads.append(router.load(heard, 2))
    assert torch.equal(*loads)


def test_the_balance_loss_alone_has_a_gradient(pair):
    plain, lean, tokens_BS, _ = pair()
    got = []
    for model in (plain, lean):
        router = Router(model, model.config)
        with router.listen() as heard:
            model.hidden(tokens_BS)
        router.balance_loss(heard, 2).backward()
        got.append(model.layers[1].ffn.gate.weight.grad)
    assert torch.equal(*got)


def test_without_gradients_nothing_changes(pair):
    plain, lean, tokens_BS, _ = pair()
    with torch.no_grad():
        assert torch.equal(plain(tokens_BS), lean(tokens_BS))


def test_a_recipe_serves_all_readers_of_any_view_and_then_drops_the_tensor():
    x = torch.randn(3, 4, requires_grad=True)
    made = []

    def double():
        made.append((x * 2).detach())
        return made[-1]

    y = x * 2
    recipes = Recipes()
    recipes.add(y, double)
    with recipes:
        z = (y * y).sum() + (y[:, 1:].t() ** 3).sum()
    want = 2 * 2 * y.detach()
    want[:, 1:] += 2 * 3 * y.detach()[:, 1:] ** 2
    for _ in range(2):  # a graph that is kept can be walked again
        (got,) = torch.autograd.grad(z, x, retain_graph=True)
        torch.testing.assert_close(got, want)
    assert len(made) == 2


def test_training_with_and_without_takes_the_same_steps(micro_run):
    results = []
    for on in (False, True):
        trainer = Trainer(micro_run(recompute=on), progress=False)
        trainer.take_step()
        trainer.take_step()
        results.append((trainer.load_GE, *trainer.optimizer.masters))
    assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))


@pytest.mark.slow
def test_compiled_blocks_recompute_too(micro_run):
    masters = []
    for on in (False, True):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's compiler warns about its own parts
            trainer = Trainer(dataclasses.replace(micro_run(), compile="all", recompute=on), progress=False)
            trainer.take_step()
            trainer.take_step()
        masters.append(trainer.optimizer.masters)
        torch.compiler.reset()
    for one, two in zip(*masters, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-3)
