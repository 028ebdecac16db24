"""On a GPU every op says what the CPU says; gumbel_topk and select_topk have their own such tests."""

import pytest
import torch

from budgetprune.ops import attention_received, gated_attention, gather_tokens

pytestmark = pytest.mark.cuda
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 5e-3}


def on_both(function, inputs):
    """Outputs and gradients on the CPU and on the GPU, with an expanded upstream gradient."""
    results = []
    for device in ("cpu", "cuda"):
        moved = [x.detach().to(device) for x in inputs]
        moved = [x.requires_grad_() if x.is_floating_point() else x for x in moved]
        out = function(*moved)
        if out.requires_grad:
            out.sum().backward()
        results.append([out.detach().cpu(), *(x.grad.cpu() for x in moved if x.grad is not None)])
    return zip(*results, strict=True)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("causal", [True, False])
def test_gated_attention_is_the_same_on_a_gpu(dtype, causal):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 37, h, 24).to(dtype).transpose(1, 2) for h in (4, 2, 2))
    gate, mask = (torch.rand(2, 37) > 0.4).float(), torch.rand(2, 37) > 0.1
    for cpu, gpu in on_both(lambda *x: gated_attention(*x[:4], mask=x[4], causal=causal), (q, k, v, gate, mask)):
        torch.testing.assert_close(gpu, cpu, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("width", [3, 8, 64])
def test_gather_tokens_is_the_same_on_a_gpu(dtype, packed, width):
    torch.manual_seed(0)
    x = torch.randn(11, 3, width).to(dtype).transpose(0, 1)
    kept = torch.tensor([[0, 2, 9], [4, -1, -1], [-1, -1, -1]], dtype=torch.int32)
    for cpu, gpu in on_both(lambda x, kept: gather_tokens(x, kept, prefix=1, packed=packed).tokens, (x, kept)):
        assert torch.equal(gpu, cpu)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("rows", ["last", "cls", "all"])
def test_attention_received_is_the_same_on_a_gpu(dtype, rows):
    torch.manual_seed(0)
    q, k = (torch.randn(2, 577, h, 40).to(dtype).transpose(1, 2) for h in (4, 2))
    mask = torch.arange(577) < torch.tensor([[577], [400]])
    for cpu, gpu in on_both(lambda q, k, mask: attention_received(q, k, rows=rows, mask=mask), (q, k, mask)):
        torch.testing.assert_close(gpu, cpu, atol=1e-6, rtol=TOLERANCE[dtype])
