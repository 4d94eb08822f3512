"""The router: which K of E experts a token visits, and how much each counts (V3 §2.1.2, Eq. 12-16).

    s = sigmoid(W u)                 affinity of a token to every expert (softmax in V2 and V2-Lite)
    choose by s + b                  b is not learnt by gradient: balancing raises it where an expert starves
    g = s_chosen / sum(s_chosen)     the weights never see b (sigmoid only; softmax scores are used as they are)

With groups ("node-limited routing", same section), the experts stand in G groups of neighbours; a group is worth the
sum of its two best s + b (its single best without a bias), and only the ``n_limited_groups`` best groups are open.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsv3.config import ModelConfig
from dsv3.probe import Tap


class Gate(nn.Module):
    """x_TD -> (weights_TK in FP32, indices_TK in int64). Everything inside is FP32: ties and near-ties decide routes.

    ``bias`` (E,) is a buffer, moved by ``train.balance`` between steps and by nothing else. The experts of a token come
    in descending order of s + b. Taps: logits_TE, scores_TE, weights_TK, indices_TK.
    """

    bias: Tensor | None

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.tap = Tap("logits_TE", "scores_TE", "weights_TK", "indices_TK")
        self.top_k = config.n_activated_experts
        self.n_groups, self.n_limited = config.n_expert_groups, config.n_limited_groups
        self.sigmoid = config.score_func == "sigmoid"
        self.route_scale = config.route_scale
        self.weight = nn.Parameter(torch.empty(config.n_routed_experts, config.dim, dtype=torch.float32))
        bias = torch.zeros(config.n_routed_experts, dtype=torch.float32) if config.has_gate_bias else None
        self.register_buffer("bias", bias)

    def forward(self, x_TD: Tensor) -> tuple[Tensor, Tensor]:
        logits_TE, scores_TE, weights_TK, indices_TK = self.choose(x_TD)
        if self.tap.listeners:
            self.tap("logits_TE", logits_TE)
            self.tap("scores_TE", scores_TE)
            self.tap("weights_TK", weights_TK)
            self.tap("indices_TK", indices_TK)
        return weights_TK, indices_TK

    def choose(self, x_TD: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """All that the gate finds, in the order of its taps."""
        logits_TE = F.linear(x_TD.float(), self.weight.float())
        scores_TE = logits_TE.sigmoid() if self.sigmoid else logits_TE.softmax(dim=-1)
        choice_TE = scores_TE if self.bias is None else scores_TE + self.bias
        if self.n_groups > 1:
            choice_TE = self._close_groups(choice_TE)
        _, indices_TK = _best(choice_TE, self.top_k)
        weights_TK = scores_TE.gather(1, indices_TK)
        if self.sigmoid:
            weights_TK = weights_TK / weights_TK.sum(dim=-1, keepdim=True)
        if self.route_scale != 1.0:
            weights_TK = weights_TK * self.route_scale
        return logits_TE, scores_TE, weights_TK, indices_TK

    def _close_groups(self, choice_TE: Tensor) -> Tensor:
        """choice_TE with -inf in every group that is not among the token's best."""
        choice_TGe = choice_TE.unflatten(-1, (self.n_groups, -1))
        if self.bias is None:
            worth_TG = choice_TGe.amax(dim=-1)
        else:
            worth_TG = _best(choice_TGe, 2)[0].sum(dim=-1)
        _, open_TL = _best(worth_TG, self.n_limited)
        closed_TG = torch.ones_like(worth_TG, dtype=torch.bool).scatter_(1, open_TL, False)
        return choice_TGe.masked_fill(closed_TG.unsqueeze(-1), float("-inf")).flatten(1)


def _best(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of the last dimension, descending, and their places."""
    if torch.compiler.is_compiling():  # topk stays a kernel of its own; a sort of a few numbers fuses with what is near
        values, places = x.sort(dim=-1, descending=True, stable=True)
        return values[..., :k], places[..., :k]
    return x.topk(k, dim=-1)
