"""Which kernel serves a row of n tokens, for ops whose rows lie in registers: csrc/row_launch.h once more."""

from .kernel import ceil_div, processors

LONGEST_IN_REGISTERS = 8192 - 3
WARP_ITEMS = (4, 12, 20, 32)
BLOCK_ITEMS = (4, 8)


def row_in_registers(rows, n, device):
    """(whether a warp serves a row, tokens per thread, grid, threads). n is at most LONGEST_IN_REGISTERS."""
    span = n + 3  # a row begins up to 3 tokens into its first group of four
    threads = ceil_div(span, 4)
    full = span <= 1024 and rows >= 2 * processors(device)
    if span <= 128:
        return True, 4, ceil_div(rows, 4), 128
    if full:
        return True, 12 if span <= 384 else 20 if span <= 640 else 32, ceil_div(rows, 4), 128
    if span <= 4096:
        return False, 4, rows, ceil_div(threads, 32) * 32
    return False, 8, rows, ceil_div(threads, 64) * 32
