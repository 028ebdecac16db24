"""The table of what FLOPs promised and what was measured, from records made by hand."""

from promised import block

from budgetprune.evaluation import Record

BASE = {"task": "digits", "model": "m", "samples": 10, "seed": 0, "accuracy": 0.5, "ci95": (0.2, 0.8), "commit": "x",
        "device": "a machine", "torch": "2", "time": "2026-01-02T03:04:05", "latency_batch": 8}


def cell(method, keep, ms, flops, **options):
    return Record(method=method, keep=keep, prefill_ms=ms, prefill_flops=flops, method_options=options, **BASE)


def test_methods_stand_by_what_their_saved_flops_saved_of_the_time():
    records = [cell("none", 64, 100.0, 1000), cell("slow", 4, 60.0, 300), cell("slow", 12, 120.0, 600),
               cell("fast", 4, 30.0, 300), cell("fast", 9, 50.0, 400, count="own")]
    head, line, fast, slow, _, said = block(records).splitlines()
    assert head == "|  | K = 4 | K = 12 | K = 32 | time / FLOPs | cells |" and line.count("--:") == 5
    assert fast == "| `fast` | 30% \u2192 30% |  |  | 1.12 (1.00 to 1.25) | 2 |"
    assert slow == "| `slow` | 30% \u2192 60% | 60% \u2192 120% |  | 2.00 (2.00 to 2.00) | 2 |"
    assert "m, batches of 8, a machine, torch 2, 2026-01-02." in said
