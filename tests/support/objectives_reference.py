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


class Sides:
    """A problem's logits (without bias), and who is what on both sides: for the losses with hard negatives."""

    def __init__(self, image, text, image_source, text_source, scale):
        (ii, iw), (ti, tw) = image_source, text_source
        self.move(image, text, scale)
        self.text_ids = ti[:, 0]
        self.mass = source_mass(ii, iw.astype(np.float64), ti, tw.astype(np.float64))
        self.image_mass = source_mass(ii, iw.astype(np.float64), ii, iw.astype(np.float64))
        self.image_valid, self.text_valid = ii[:, 0] >= 0, ti[:, 0] >= 0
        self.image_negative = self.image_valid & (iw.sum(1) == 0)
        self.text_negative = self.text_valid & (tw.sum(1) == 0)
        self.captions = self.text_valid & ~self.text_negative
        same = source_mass(ii, 1.0 * (ii >= 0), ti, 1.0 * (ti >= 0)) > 0
        self.own_texts = same & self.image_valid[:, None] & self.text_negative[None, :]
        self.own_images = same & self.text_valid[None, :] & self.image_negative[:, None]
        self.pairs = self.image_valid[:, None] & self.text_valid[None, :]

    def move(self, image, text, scale):
        """The same rows with other embeddings."""
        self.image, self.text, self.scale, self.logits = image, text, scale, scale * image @ text.T
        return self


def softmax_losses(logits, target, among):
    """Each row's ``log Σ_among e^L - Σ S L / Σ S``, of the rows that have a target."""
    return np.array(
        [
            np.logaddexp.reduce(np.append(row[use], -np.inf)) - t @ row / t.sum()
            for row, t, use in zip(logits, target, among, strict=True)
            if t.sum() > 0
        ]
    )


def clip(s):
    rows = softmax_losses(s.logits, s.mass, s.pairs)
    columns = softmax_losses(s.logits.T, s.mass.T, s.pairs.T)
    return (rows.mean() + columns.mean()) / 2


def cft(s, temperature=0.05):
    return softmax_losses(s.logits / s.scale / temperature, s.mass, s.pairs).mean()


def tsvlc(s, negative_weight=1.0, positive_weight=1.0):
    has_own = s.own_texts.any(1)[:, None]
    own = softmax_losses(s.logits, s.mass * has_own, (s.mass > 0) | s.own_texts)
    to_captions = softmax_losses(s.logits, s.mass, s.pairs & s.captions)
    among = s.scale * s.text @ s.text.T
    itself = np.eye(len(among), dtype=bool)
    same = s.text_ids[:, None] == s.text_ids[None, :]
    texts = []
    for j in np.flatnonzero(s.captions):
        analogies = same[j] & s.captions & ~itself[j]
        if not analogies.any():
            analogies = itself[j]
        use = analogies | (s.captions & ~itself[j])
        texts.append(np.logaddexp.reduce(among[j, use]) - among[j, analogies].mean())
    positive = (to_captions.mean() + np.mean(texts)) / 2
    return clip(s) + negative_weight * own.mean() + positive_weight * positive


def biaug(s):
    """The bimodal form."""
    to_text = softmax_losses(s.logits, s.mass, s.pairs & (~s.text_negative[None, :] | s.own_texts))
    to_image = softmax_losses(s.logits.T, s.mass.T, (s.pairs & (~s.image_negative[:, None] | s.own_images)).T)
    return (to_text.mean() + to_image.mean()) / 2


def fscl(s, image_group, text_group, group_norm=True):
    total = 0.0
    for turn in (False, True):
        logits, mass, pairs = (x.T if turn else x for x in (s.logits, s.mass, s.pairs))
        own, other = (text_group, image_group) if turn else (image_group, text_group)
        losses, groups = [], []
        for row, t, use, group in zip(logits, mass, pairs, own, strict=True):
            t = t * (other >= 0)
            against = use & (t == 0) & (other == group)
            if group >= 0 and t.sum() > 0 and against.any():
                losses.append(np.logaddexp.reduce(row[against]) - t @ row / t.sum())
                groups.append(group)
        weights = [1 / groups.count(g) if group_norm else 1 for g in groups]
        total += np.average(losses, weights=weights) / 2
    return total


def clic(s, places=None, contrast_weight=0.5, negative_weight=0.5, uni_weight=1.0):
    places = np.zeros(len(s.text), int) if places is None else places
    rows, choices = [], []
    for k in range(4):
        mass = s.mass * (places == k)
        rows.append(softmax_losses(s.logits, mass, s.pairs & s.captions & (places == k)))
        for row, t, own in zip(s.logits, mass, s.own_texts, strict=True):
            if t.sum() > 0 and own.any():
                choices.append(np.log1p(np.exp(row[own] - t @ row / t.sum()).sum()))
    contrast = (np.concatenate(rows).mean() + softmax_losses(s.logits.T, s.mass.T, s.pairs.T).mean()) / 2
    same = (s.text_ids[:, None] == s.text_ids) & np.outer(s.captions & (places == 0), s.captions & (places == 1))
    distances = [2 - 2 * (s.text[j] @ s.text[same[j]].T).mean() for j in range(len(same)) if same[j].any()]
    if not choices:
        return contrast
    uni = np.mean(distances) if distances else 0.0
    return contrast_weight * contrast + negative_weight * np.mean(choices) + uni_weight * uni


def cs_clip(s, places=None, numbers=None, unit_weight=0.5):
    places = np.zeros(len(s.text), int) if places is None else places
    numbers = np.arange(len(s.text)) if numbers is None else numbers
    own = [[set(numbers[(t > 0) & (places == k)]) for t in s.mass] for k in range(4)]
    full, units = [], []
    for k in range(4):
        foils = s.text_negative[None, :] if k == 0 else s.own_texts
        equal = np.array([[number in mine for number in numbers] for mine in own[k]]) & (s.mass == 0)
        among = s.pairs & (places == k) & (s.captions[None, :] | foils) & ~equal
        losses = softmax_losses(s.logits, s.mass * (places == k), among)
        has_equal = np.array([[any(number in o[i] for o in own) for i in range(len(s.mass))] for number in numbers])
        candidates = s.pairs.T & ~(has_equal & (s.mass.T == 0))
        columns = softmax_losses(s.logits.T, s.mass.T * (places == k)[:, None], candidates)
        (units if k else full).append((losses, columns))
    total = 0.0
    for weight, terms in ((1.0, full), (unit_weight, units)):
        for side in (0, 1):
            every = np.concatenate([pair[side] for pair in terms])
            total += weight * every.mean() / 2 if every.size else 0.0
    return total


def knowledge(s, places=None, numbers=None):
    places = np.zeros(len(s.text), int) if places is None else places
    sums = (s.mass * (places > 0)) @ s.text
    has = np.linalg.norm(sums, axis=1) > 0
    total = cs_clip(s, places, numbers, unit_weight=1.0)
    if has.any():
        means = sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)
        same = s.image_mass * np.outer(has, has)
        among = np.outer(has, has) & np.outer(s.image_valid, s.image_valid)
        logits = s.scale * s.image @ means.T
        total += (softmax_losses(logits, same, among).mean() + softmax_losses(logits.T, same, among).mean()) / 2
    return total


def divergence(s, image_teacher, text_teacher, temperature=0.01):
    """Mean KL of rows and of columns from a teacher whose rows of zeros are unknown."""
    teacher = image_teacher @ text_teacher.T / temperature
    known = np.outer((image_teacher != 0).any(1) & s.image_valid, (text_teacher != 0).any(1) & s.text_valid)
    total = 0.0
    for turn in (False, True):
        p_of, q_of, use_of = (x.T if turn else x for x in (teacher, s.logits, known))
        each = []
        for p, q, use in zip(p_of, q_of, use_of, strict=True):
            if use.any():
                p, q = (x[use] - np.logaddexp.reduce(x[use]) for x in (p, q))
                each.append(np.exp(p) @ (p - q))
        total += np.mean(each) / 2
    return total


def numeric_gradient(loss, values, step=1e-5):
    """Central differences of a float64 function of several arrays."""
    gradients = []
    for k, value in enumerate(values):
        value = np.asarray(value, np.float64)
        gradient = np.zeros_like(value)
        for index in np.ndindex(value.shape):
            shifted = []
            for sign in (1, -1):
                moved = value.copy()
                moved[index] += sign * step
                shifted.append(loss(*values[:k], moved, *values[k + 1 :]))
            gradient[index] = (shifted[0] - shifted[1]) / (2 * step)
        gradients.append(gradient)
    return gradients


def _means(logits, mass):
    """Each row's mean logit by its targets; nan without any."""
    with np.errstate(invalid="ignore"):
        return (mass * logits).sum(1) / mass.sum(1)


def sluma(s, threshold=0.0, smoothing=0.1):
    """CLIP's loss without images of zero weight, smoothed distances, and pseudo-labels for these images."""
    unlabeled = s.image_negative
    labeled = s.pairs & ~unlabeled[:, None]
    contrast = 0.5 * sum(
        np.mean(softmax_losses(logits, mass, among))
        for logits, mass, among in ((s.logits, s.mass, labeled), (s.logits.T, s.mass.T, labeled.T))
    )
    smooth = 0.0
    distance = np.sqrt(2 - 2 * s.image @ s.text.T + 1e-6)
    for d, mass, among in ((distance, s.mass, labeled), (distance.T, s.mass.T, labeled.T)):
        rows = []
        for i in np.flatnonzero(mass.sum(1) > 0):
            own = mass[i] @ d[i] / mass[i].sum()
            negatives = d[i][among[i] & (mass[i] == 0)]
            hinges = [max(0.0, 1 / (1 + np.exp(own - far)) - far) ** 2 for far in negatives]
            rows.append(mass[i] @ d[i] ** 2 / mass[i].sum() + (np.mean(hinges) if hinges else 0.0))
        smooth += 0.5 * np.mean(rows)
    losses = []
    for row in s.logits[unlabeled][:, s.captions]:
        loss = np.logaddexp.reduce(row) - row.max()
        losses.append(loss if np.exp(-loss) >= threshold else 0.0)
    return contrast + smoothing * smooth + (np.mean(losses) if losses else 0.0)


def ce_clip(s, threshold=0.0, rank_weight=0.2, intra_weight=0.3):
    hinges = np.maximum(threshold + s.logits - _means(s.logits, s.mass)[:, None], 0)
    captions = _means(s.logits.T, s.mass.T)[s.captions]
    negatives = np.exp(s.scale * s.text[s.captions] @ s.text[s.text_negative].T).sum(1)
    intra = -np.log(np.exp(captions) / (np.exp(captions) + negatives)).mean()
    return clip(s) + rank_weight * hinges[s.own_texts & (s.mass.sum(1) > 0)[:, None]].mean() + intra_weight * intra


def ce_clip_threshold(s, limit=10.0):
    has = s.mass.sum(1) > 0
    gap = _means(s.logits, s.mass)[has].mean() - s.logits[s.own_texts & has[:, None]].mean()
    return np.clip(gap, 0, limit)


def hn_nce(s, alpha=1.0, beta=0.0, k=None, limit=None, frozen=None):
    """``frozen`` are the sides that weights are of, for weights without a gradient."""
    total = 0.0
    for turn in (False, True):
        logits, mass, pairs, of = (
            x.T if turn else x for x in (s.logits, s.mass, s.pairs, s.logits if frozen is None else frozen.logits)
        )
        losses = []
        for row, t, use, weighted_by in zip(logits, mass, pairs, of, strict=True):
            if t.sum() == 0:
                continue
            positive = t @ row / t.sum()
            negative = use & (t == 0)
            if limit is not None:
                negative &= row <= limit * positive
            if k is not None:
                negative &= row >= np.sort(row[negative])[::-1][:k].min(initial=np.inf)
            weights = np.exp(beta * weighted_by[negative])
            weights *= len(weights) / max(weights.sum(), 1e-300)
            losses.append(np.log(alpha * np.exp(row[t > 0]).sum() + weights @ np.exp(row[negative])) - positive)
        total += np.mean(losses) / 2
    return total
