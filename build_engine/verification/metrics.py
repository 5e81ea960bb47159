"""Accumulate perplexity, KL divergence and greedy agreement over windows of tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

from build_engine.verification.confidence import Part

SLICE = 128
"""Positions whose full distributions are in memory at once; a vocabulary of 256k takes 128 MB each."""


@dataclass(slots=True)
class Accumulator:
    """Sums over predicted tokens, in float64. Perplexity is exp of the mean negative log-likelihood in nats.

    ``parts`` are the same sums, ``span`` tokens each: how much they differ says how far to trust their mean.
    """

    span: int = SLICE
    parts: list[Part] = field(default_factory=list)
    tokens: int = 0
    loss: float = 0.0
    reference_loss: float = 0.0
    divergence: float = 0.0
    agreed: int = 0
    worst_divergence: float = 0.0
    worst_position: int = field(default=-1)

    def add(self, reference: torch.Tensor, candidate: torch.Tensor, ids: torch.Tensor) -> None:
        """Add one window: logits [n, vocabulary] of both, and its ``n`` token ids; ``n − 1`` predictions count."""
        if reference.shape[0] != ids.shape[0] or candidate.shape[0] != ids.shape[0]:
            raise ValueError(f"{reference.shape[0]} and {candidate.shape[0]} rows of logits for {ids.shape[0]} tokens")
        width = min(reference.shape[1], candidate.shape[1])  # a split vocabulary may be padded
        for start in range(0, ids.shape[0] - 1, self.span):
            stop = min(start + self.span, ids.shape[0] - 1)
            target = ids[start + 1 : stop + 1, None]
            p = torch.log_softmax(reference[start:stop, :width].float(), dim=-1)
            q = torch.log_softmax(candidate[start:stop, :width].float(), dim=-1)
            each = (p.exp() * (p - q)).sum(dim=-1).double()
            reference_loss = -float(p.gather(1, target).double().sum())
            loss = -float(q.gather(1, target).double().sum())
            part = Part(stop - start, loss, reference_loss, float(each.sum()))
            self.parts.append(part)
            self.tokens += part.tokens
            self.reference_loss += part.reference_loss
            self.loss += part.loss
            self.divergence += part.divergence
            self.agreed += int((p.argmax(dim=-1) == q.argmax(dim=-1)).sum())
            worst = float(each.max())
            if not worst <= self.worst_divergence:
                self.worst_divergence, self.worst_position = worst, self.tokens - (stop - start) + int(each.argmax())

    @property
    def perplexity(self) -> float:
        return _exp(self.loss / self.tokens)

    @property
    def reference_perplexity(self) -> float:
        return _exp(self.reference_loss / self.tokens)

    @property
    def mean_kl(self) -> float:
        return self.divergence / self.tokens

    @property
    def agreement(self) -> float:
        return self.agreed / self.tokens


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf
