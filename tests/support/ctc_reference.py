"""Connectionist temporal classification in float64, by its definition."""

import numpy as np


def forward_backward(logits, labels, blank):
    """The CTC loss of one sequence and its gradient by the logits, in float64 (Graves et al. 2006, section 4)."""
    logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    symbols = [blank]
    for label in labels:
        symbols += [label, blank]
    count, steps = len(symbols), len(logits)

    def moves(s, sign):
        reach = [s, s - sign]
        if 0 <= s - 2 * sign < count and symbols[s] != blank and symbols[s] != symbols[s - 2 * sign]:
            reach.append(s - 2 * sign)
        return [r for r in reach if 0 <= r < count]

    before, after = np.full((2, steps, count), -np.inf)
    before[0, :2], after[-1, -2:] = logs[0, symbols[:2]], logs[-1, symbols[-2:]]
    for t in range(1, steps):
        for s in range(count):
            before[t, s] = np.logaddexp.reduce(before[t - 1, moves(s, 1)]) + logs[t, symbols[s]]
            u = steps - 1 - t
            after[u, s] = np.logaddexp.reduce(after[u + 1, moves(s, -1)]) + logs[u, symbols[s]]
    total = np.logaddexp.reduce(before[-1, -2:])
    gradient = np.exp(logs)
    for t in range(steps):
        for s, symbol in enumerate(symbols):
            gradient[t, symbol] -= np.exp(before[t, s] + after[t, s] - logs[t, symbol] - total)
    return -total, gradient
