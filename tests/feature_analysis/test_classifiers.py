"""Linear probe and nearest neighbours against slow ways to the same, and labels made of questions."""

import pytest
import torch
from torch import Tensor

from datamodules.encoding.questions import Question
from fvl_lightning.feature_analysis import labels as labels_module
from fvl_lightning.feature_analysis.classifiers import STRENGTHS, linear_probe, nearest_neighbours
from fvl_lightning.feature_analysis.labels import UNSEEN, image_labels


def drawn(rows: int, seed: int, dim: int = 4) -> Tensor:
    return torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def standardised(fitted: Tensor, tested: Tensor) -> tuple[Tensor, Tensor]:
    mean, deviation = fitted.mean(0), fitted.std(0, correction=0)
    return (fitted - mean) / deviation, (tested - mean) / deviation


def ridge(x: Tensor, y: Tensor, new: Tensor, penalty: float) -> Tensor:
    """Solves the normal equations with an intercept that is not penalised."""
    wide = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1)
    weights = penalty * torch.eye(wide.shape[1], dtype=x.dtype)
    weights[-1, -1] = 0
    solved = torch.linalg.solve(wide.T @ wide + weights, wide.T @ y)
    return torch.cat([new, torch.ones(len(new), 1, dtype=x.dtype)], 1) @ solved


def test_the_linear_probe_is_ridge_regression_with_the_best_penalty() -> None:
    """The penalty is found by leaving out each row in turn; the labels are noisy, so that it matters."""
    fitted, tested = drawn(14, 0), drawn(200, 1)
    labels = ((fitted[:, 0] + drawn(14, 2)[:, 0]) > 0).long() + ((fitted[:, 1] + drawn(14, 3)[:, 1]) > 1).long()
    x, new = standardised(fitted, tested)
    y = torch.nn.functional.one_hot(labels).double()
    largest = float(torch.linalg.matrix_norm(x, 2) ** 2)
    errors = []
    for strength in STRENGTHS:
        left_out = 0.0
        for row in range(14):
            rest = [other for other in range(14) if other != row]
            left_out += float((ridge(x[rest], y[rest], x[row : row + 1], strength * largest) - y[row]).square().sum())
        errors.append(left_out)
    best = STRENGTHS[errors.index(min(errors))]
    assert STRENGTHS[0] < best
    wanted = ridge(x, y, new, best * largest).argmax(1)
    assert torch.equal(linear_probe(fitted, labels, tested), wanted)


def test_planted_labels_are_all_found() -> None:
    """Also with more channels than rows, and one that is constant."""
    fitted, tested = drawn(30, 0, 50), drawn(20, 1, 50)
    for part in (fitted, tested):
        part[:, 0] = torch.arange(len(part)) % 3 * 20.0
        part[:, 1] = 7.0
    found = linear_probe(fitted, torch.arange(30) % 2, tested)
    assert set(found.tolist()) <= {0, 1}
    assert torch.equal(
        linear_probe(fitted[:, :2], (torch.arange(30) % 3 > 0).long(), tested[:, :2]), (torch.arange(20) % 3 > 0).long()
    )
    assert torch.equal(
        nearest_neighbours(fitted[:, :2], torch.arange(30) % 3 // 2, tested[:, :2], 3), torch.arange(20) % 3 // 2
    )


def test_neighbours_are_those_of_brute_force() -> None:
    fitted, tested = drawn(40, 4), drawn(15, 5)
    labels = torch.randint(0, 4, (40,), generator=torch.Generator().manual_seed(6))
    x, new = standardised(fitted, tested)
    wanted = []
    for query in new:
        similar = sorted(
            (
                (float(query @ row / query.norm() / row.norm()), int(label))
                for row, label in zip(x, labels, strict=True)
            ),
            reverse=True,
        )[:6]
        votes = {label: [s for s, other in similar if other == label] for _, label in similar}
        wanted.append(max(votes, key=lambda label: (len(votes[label]), sum(votes[label]))))
    assert nearest_neighbours(fitted, labels, tested, 6).tolist() == wanted


def question(sample: int, text: str, answer: str, kind: str = "kind") -> Question:
    content = [{"type": "image"}, {"type": "text", "text": text}]
    return Question(f"key{sample}", sample, kind, ({"role": "user", "content": content},), answer)


def test_labels_are_answers_to_the_same_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labels_module, "FEWEST_FITTED", 4)
    monkeypatch.setattr(labels_module, "FEWEST_TESTED", 2)
    fitted = [question(sample, "how many?", str(sample % 2), "count") for sample in range(4)]
    fitted += [question(0, "how many?", "9"), question(5, "rare?", "yes"), question(6, "rare?", "no")]
    fitted += [question(sample, "always?", "yes") for sample in range(5)]
    tested = [question(0, "how many?", "1"), question(3, "how many?", "7"), question(1, "always?", "yes")]
    (found,) = image_labels(fitted, tested)
    assert (found.question, found.kind, found.answers) == ("how many?", "count", ("0", "1"))
    assert (found.fitted_samples, found.fitted.tolist()) == ((0, 1, 2, 3), [0, 1, 0, 1])
    assert (found.tested_samples, found.tested.tolist()) == ((0, 3), [1, UNSEEN])
    assert found.most_frequent == 0
