"""Keyed noise in plain torch, bit for bit what csrc/philox.cuh draws: every product and sum is its own tensor op."""

import torch

# csrc/philox.cuh, log_of_parts: the polynomial's even and odd powers, highest first, each exactly a float32.
LOG_EVEN = [float.fromhex(c) for c in (
    "0x1.1457a6p-4", "0x1.e6f06ap-4", "0x1.233768p-3", "0x1.99a4b6p-3", "0x1.555548p-2")]
LOG_ODD = [float.fromhex(c) for c in ("-0x1.de3c16p-4", "-0x1.fc2208p-4", "-0x1.555c4ep-3", "-0x1.000006p-2")]
WORD = 0xFFFFFFFF


def philox_reference(seed, counter):
    """The four 32-bit words, as int64, of Philox4x32-10 for int64 seeds and counters (Salmon et al., SC 2011)."""
    c0, c1 = counter & WORD, (counter >> 32) & WORD
    c2, c3 = torch.zeros_like(c0), torch.zeros_like(c0)
    k0, k1 = seed & WORD, (seed >> 32) & WORD
    for _ in range(10):
        left, right = c0 * 0xD2511F53, c2 * 0xCD9E8D57  # int64 products wrap, which keeps all 64 bits
        c0, c1, c2, c3 = ((right >> 32) & WORD) ^ c1 ^ k0, right & WORD, ((left >> 32) & WORD) ^ c3 ^ k1, left & WORD
        k0, k1 = (k0 + 0x9E3779B9) & WORD, (k1 + 0xBB67AE85) & WORD
    return c0, c1, c2, c3


def words_reference(key, batch, tokens):
    """[B, N] int64: the 32 random bits of each element."""
    seed, offset = key[..., 0, None], key[..., 1, None]  # [1] or [B, 1]
    element = torch.arange(tokens, device=key.device).expand(batch, tokens)
    if key.dim() == 1:
        element = element + tokens * torch.arange(batch, device=key.device)[:, None]
    words = philox_reference(seed.expand_as(element), offset + element // 4)
    return torch.stack(words, dim=-1).gather(-1, (element % 4)[..., None])[..., 0]


def _polynomial(coefficients, x):
    value = torch.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        value = value * x + coefficient
    return value


def _log_of_parts(e, f):
    square = f * f
    p = _polynomial(LOG_EVEN, square) + _polynomial(LOG_ODD, square) * f
    small = f * square * p
    small = small + e * -2.12194440e-4
    small = small + square * -0.5
    return (f + small) + e * 0.693359375


def _split(x):
    bits = x.view(torch.int32)
    exponent = (bits - 0x3F3504F3) >> 23
    return exponent.float(), (bits - (exponent << 23)).view(torch.float32) - 1.0


def log_reference(x):
    """log of positive normal float32."""
    return _log_of_parts(*_split(x))


def log_uniform_reference(k):
    """log((k + 1/2) / 2^24) in float32 for int64 k below 2^24; above 1/2 from 1 - u, which a float32 holds exactly."""
    e, f = _split((2 * k + 1).float() * 2.0**-25)
    rest = (2 * (0xFFFFFF - k) + 1).float()
    near_one, upper = rest < 9827678.0, k >= 0x800000
    e_upper = torch.where(near_one, 0.0, -1.0)
    f_upper = torch.where(near_one, rest * -(2.0**-25), rest * -(2.0**-24) + 1.0)
    return _log_of_parts(torch.where(upper, e_upper, e), torch.where(upper, f_upper, f))


def noise_reference(key, batch, tokens, noise, device):
    """[B, N] float32. gumbel: -log(-log u); logistic: log u - log(1 - u); none: 0. u = (k + 1/2) / 2^24, k 24 bits."""
    if noise == "none":
        return torch.zeros(batch, tokens, device=device)
    k = words_reference(key, batch, tokens) & 0xFFFFFF
    log_u = log_uniform_reference(k)
    return -log_reference(-log_u) if noise == "gumbel" else log_u - log_uniform_reference(0xFFFFFF - k)
