import threading

import pytest
import torch

from sj_burst.backends import team


@pytest.mark.parametrize("own", [True, False])
def test_every_part_is_done_once(monkeypatch, own):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    if not own:
        monkeypatch.setattr(team, "_team", lambda: None)
    for parts in (1, 2, 3, 20):
        done, lock = [], threading.Lock()

        def work(part, done=done, lock=lock):
            with lock:
                done.append(part)

        team.side_by_side(work, parts)
        assert sorted(done) == list(range(parts))


@pytest.mark.parametrize("own", [True, False])
def test_errors_arrive(monkeypatch, own):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    if not own:
        monkeypatch.setattr(team, "_team", lambda: None)

    def work(part):
        if part == 1:
            raise KeyError("part 1")

    with pytest.raises(KeyError, match="part 1"):
        team.side_by_side(work, 4)


def test_parts_run_at_the_same_time(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    meeting = threading.Barrier(2, timeout=30)
    team.side_by_side(lambda part: meeting.wait(), 2)
