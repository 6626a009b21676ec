import torch

from sj_burst.training.candidates import Candidate, non_dominated


def test_non_dominated_against_brute_force():
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(0, 6, (200, 2), generator=generator).tolist()
    candidates = [Candidate(0.1, float(a), float(o), i, {}) for i, (a, o) in enumerate(values)]
    kept = {(c.accuracy, c.omega) for c in non_dominated(candidates)}
    points = {(c.accuracy, c.omega) for c in candidates}
    expected = {p for p in points if not any(q != p and q[0] >= p[0] and q[1] <= p[1] for q in points)}
    assert kept == expected
    assert len(non_dominated(candidates)) == len(kept)
