"""Training without a choice: every token stays, and the less it is wanted the more noise stands in its place."""

import math

import torch
from torch import Tensor

from ..ops._noise_reference import philox_reference

FORMS = ("race", "fermi")
STREAM = 0x5DEECE66D  # parts the noise in features from the noise of the choice, which has the same key


def inclusion_probabilities(logits: Tensor, counts: Tensor | list[int] | int, *, tau: float = 1.0,
                            estimator: str = "fermi") -> Tensor:
    """[B, N] in [0, 1] with row sums `counts`: how much each token is wanted. Differentiable, as often as asked.

    race: 1 - exp(-exp(x)), fermi: sigmoid(x), at x = logits / tau + nu, one nu for each row. nu is found by bisection
    in float64 and then takes one Newton step, whose derivative is that of the root. A row that keeps all has ones.

    logits: [B, N] float. counts: 1 <= K <= N of each row. ValueError: another count, or an unknown estimator.
    """
    if estimator not in FORMS:
        raise ValueError(f"estimator must be one of {FORMS}, got {estimator!r}")
    theta = logits.double() / tau
    wanted = torch.as_tensor(counts, dtype=torch.float64, device=logits.device).expand(len(logits))
    if bool(((wanted < 1) | (wanted > logits.shape[1])).any()):
        raise ValueError(f"counts must be in [1, N={logits.shape[1]}], got {wanted.long().tolist()}")

    def share(nu):
        x = theta + nu[:, None]
        return -torch.expm1(-x.clamp(max=7).exp()) if estimator == "race" else torch.sigmoid(x)

    with torch.no_grad():
        reach = theta.abs().amax(1) + 60
        low, high = -reach, reach
        for _ in range(64):
            middle = (low + high) / 2
            short = share(middle).sum(1) < wanted
            low, high = torch.where(short, middle, low), torch.where(short, high, middle)
        middle = (low + high) / 2
        x = theta + middle[:, None]
        slope = (torch.exp(x - x.exp()) if estimator == "race" else torch.sigmoid(x) * torch.sigmoid(-x)).sum(1)
    all_stay = wanted >= logits.shape[1]
    step = (wanted - share(middle).sum(1)) / torch.where(slope > 0, slope, 1.0)
    found = share(middle + torch.where(all_stay, 0.0, step))
    return torch.where(all_stay[:, None], torch.ones_like(found), found).clamp(0, 1).to(logits.dtype)


def throttle(tokens: Tensor, share: Tensor, key: Tensor) -> Tensor:
    """[B, N, C]: sqrt(share) of each token's departure from the mean token, the rest noise of the same spread.

    With m and s, mean and standard deviation of each channel over a sample's tokens: m + sqrt(a) (x - m) +
    sqrt(1 - a) s e, e standard normal. Mean and variance of the tokens stay what they were ("variance-preserving"), so
    that the model sees nothing out of its range; a token with a = 0 says nothing any more. The noise is a function of
    `key` alone, on any device.

    tokens: [B, N, C] float. share: a, [B, N] in [0, 1]. key: int64 [2] or [B, 2], Philox seed and offset.
    Source: the idea of DiffPrune's Information Throttler, He et al., arXiv 2605.28051, 2026. Departures: our own form
    of the noise, and shares that sum to the budget in each row (`inclusion_probabilities`), not a term in the loss.
    """
    exact = tokens.float()
    mean, spread = exact.mean(1, keepdim=True).detach(), exact.std(1, keepdim=True, correction=0).detach()
    signal, rest = share.float().clamp(0, 1)[..., None], (1 - share.float()).clamp(0, 1)[..., None]
    # The root of 0 has no derivative; there a millionth of a token is no information either.
    noisy = mean + (signal + 1e-6).sqrt() * (exact - mean) + (rest + 1e-6).sqrt() * spread * normal_noise(key, tokens)
    return noisy.to(tokens.dtype)


def normal_noise(key: Tensor, like: Tensor) -> Tensor:
    """Standard normal float32 in the shape of `like`, [B, ...], from Philox4x32-10: the same on every device."""
    batch, each = len(like), like[0].numel()
    blocks = -(-each // 4)
    counter = torch.arange(blocks, device=like.device).expand(batch, blocks)
    if key.dim() == 1:
        counter = counter + blocks * torch.arange(batch, device=like.device)[:, None]
    seed, offset = key[..., 0, None].to(like.device), key[..., 1, None].to(like.device)
    words = philox_reference((seed ^ STREAM).expand_as(counter), offset + counter)
    k = torch.stack(words, dim=-1).flatten(1)[:, :each] & 0xFFFFFF
    # 2 u - 1 for u = (k + 1/2) / 2^24, exact in float64, where it is never -1 or 1.
    return (math.sqrt(2) * torch.erfinv((2 * k + 1 - 2**24).double() / 2**24)).float().view(like.shape)
