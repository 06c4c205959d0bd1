"""Which part of the model is built here, and the few spots where parts meet.

A layer calls these at fixed points of its forward pass; on one device they do nothing. parallel/ has a Place whose
methods communicate, and the model does not know the difference. Hidden states are [T, batch, sequence, hidden].
"""

from dataclasses import dataclass

import torch

from nt_dist.model.layers import Linear, products
from nt_dist.model.losses import token_losses
from nt_dist.sparsity.spec import WeightSpec


@dataclass(frozen=True)
class Place:
    """The whole model on one device."""

    def trails(self, spec: WeightSpec) -> range:
        """Return the global numbers of the trails of ``spec`` that are held here."""
        return range(spec.trails)

    def shards(self, spec: WeightSpec) -> range:
        """Return the global numbers of the topology shards of ``spec`` that are held here."""
        return range(spec.shards)

    def into_columns(self, x: torch.Tensor) -> torch.Tensor:
        """Pass a whole hidden state to matrices that are cut by rows of W (column-parallel)."""
        return x

    def columns(self, x: torch.Tensor, *matrices: Linear) -> list[torch.Tensor]:
        """Return the products of a whole hidden state with such matrices, all of one kind."""
        return products(matrices[0].lay_out(self.into_columns(x)), *matrices)

    def positions_held(self, count: int) -> int:
        """Return how many of ``count`` positions hidden states have here between matrices."""
        return count

    def out_of_rows(self, x: torch.Tensor) -> torch.Tensor:
        """Join the partial results of matrices that are cut by columns of W (row-parallel): their sum."""
        return x

    def into_trunk(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return those sequences [b, S] of a micro-batch [B, S] for which the trunk is computed here."""
        return tokens

    def fork(self, x: torch.Tensor) -> torch.Tensor:
        """Pass the trunk's hidden state [1, b, S, H] to the trails held here, which need that of all B sequences."""
        return x

    def token_losses(self, logits: torch.Tensor, targets: torch.Tensor, smoothing: float = 0.0) -> torch.Tensor:
        """Return the losses [T, B, S] of targets [B, S] under the logits held here [T, B, S, V]."""
        return token_losses(logits, targets, self.max_over_classes, self.sum_over_classes, smoothing)

    def trail_losses(
        self,
        logits: torch.Tensor,
        targets: torch.Tensor,
        weights: torch.Tensor,
        joint_mean: str = "",
        smoothing: float = 0.0,
    ) -> torch.Tensor:
        """Return the sums of token losses, fp32 [T], of the trails held here: logits [T, B, S, V], targets [B, S].

        The weights [B, S] are 0 for padding. One position (S = 1) may have several targets [B, K], whose shares its
        weights are: a loss is linear in its target. ``joint_mean``, "logits" or "probabilities", adds the loss of that
        mean over all trails as a last one, [T + 1], with the gradient of the logits held here. The trails' own targets
        alone are smoothed; see losses.token_losses.
        """
        if targets.shape[1] > logits.shape[2] == 1:
            logits = logits.expand(-1, -1, targets.shape[1], -1)
        losses = self.token_losses(logits, targets, smoothing)
        if joint_mean == "logits":
            losses = torch.cat([losses, self.token_losses(self.mean_of_trails(logits)[None], targets)])
        elif joint_mean == "probabilities":
            exact = self.token_losses(logits, targets) if smoothing else losses
            least = self.min_over_trails(exact.detach().amin(0))
            probability = self.mean_of_trails((least - exact).exp())  # of the target, over that of the best trail
            losses = torch.cat([losses, (least - probability.log())[None]])
        return (losses * weights).flatten(1).sum(1)

    def all_trails(self, figures: torch.Tensor) -> torch.Tensor:
        """Return what all trails have [trails, ...], given that of those held here [T, ...], without a gradient."""
        return figures

    def mean_of_trails(self, figures: torch.Tensor) -> torch.Tensor:
        """Return the mean over all trails, fp32 [...], of figures [T, ...]; on each rank with its trails' gradient."""
        return figures.mean(0, dtype=torch.float32)

    def min_over_trails(self, figures: torch.Tensor) -> torch.Tensor:
        """Return minima over all trails, given those over the trails held here, without a gradient."""
        return figures

    def highest(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the highest value among all classes and its class, both [T, ...], of logits [T, ..., V]."""
        return tuple(logits.max(-1))

    def most_likely(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the class of the highest logit among all classes [T, ...], for logits [T, ..., V]."""
        return self.highest(logits)[1]

    def max_over_classes(self, figures: torch.Tensor) -> torch.Tensor:
        """Return maxima over all classes, given those over the classes held here, without a gradient."""
        return figures

    def sum_over_classes(self, figures: torch.Tensor) -> torch.Tensor:
        """Return sums over all classes, given those over the classes held here, without a gradient."""
        return figures

    def log_sum_exp(self, logits: torch.Tensor) -> torch.Tensor:
        """Return log Σ exp over all classes [T, ...] of logits [T, ..., V], without a gradient."""
        return logits.logsumexp(-1)

    def at(self, logits: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        """Return the values [T, N] of the classes [N] in logits [T, N, V], without a gradient."""
        return logits.gather(-1, classes.expand(len(logits), -1)[..., None])[..., 0]
