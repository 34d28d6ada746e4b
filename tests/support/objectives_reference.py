"""Float64 numpy forms of the objectives, written from the equations and with gradients by hand."""

import numpy as np


def source_mass(image_ids, image_weight, text_ids, text_weight):
    mass = np.zeros((len(image_ids), len(text_ids)))
    for i in range(len(image_ids)):
        for j in range(len(text_ids)):
            for k in range(image_ids.shape[1]):
                for m in range(text_ids.shape[1]):
                    if image_ids[i, k] == text_ids[j, m]:
                        mass[i, j] += image_weight[i, k] * text_weight[j, m]
    return mass


def contrastive(image, text, mass, image_valid, text_valid, scale, bias=0.0):
    """Loss, and its gradient with respect to the logits, row by row and column by column."""
    logits = scale * image @ text.T + bias
    gradient = np.zeros_like(logits)
    total = 0.0
    for matrix, target, rows, columns, turn in (
        (logits, mass, image_valid, text_valid, False),
        (logits.T, mass.T, text_valid, image_valid, True),
    ):
        queries = [i for i in range(len(matrix)) if rows[i] and target[i].sum() > 0]
        part = np.zeros_like(matrix)
        for i in queries:
            use = np.flatnonzero(columns)
            scores = matrix[i, use]
            normaliser = scores.max() + np.log(np.exp(scores - scores.max()).sum())
            share = target[i, use] / target[i].sum()
            total += 0.5 * (normaliser - share @ scores) / len(queries)
            part[i, use] = 0.5 * (np.exp(scores - normaliser) - share) / len(queries)
        gradient += part.T if turn else part
    return total, gradient, logits


def sigmoid(image, text, mass, image_valid, text_valid, scale, bias):
    logits = scale * image @ text.T + bias
    pairs = np.outer(image_valid, text_valid)
    probability = 1 / (1 + np.exp(-logits))
    loss = -(mass * np.log(probability) + (1 - mass) * np.log1p(-probability))
    n = image_valid.sum()
    return (loss * pairs).sum() / n, (probability - mass) * pairs / n, logits
