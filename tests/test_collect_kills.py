"""`guardlearn collect`, killed at ten seeded moments: nothing lost but what was in flight, nothing twice."""

from collections import Counter

import pytest

import collecting
import killing


@pytest.mark.slow
def test_ten_kills_lose_what_was_in_flight_and_double_nothing(tmp_path):
    seen = Counter()
    with killing.nursery() as nursery:
        for seed in range(10):
            folder = tmp_path / str(seed)
            folder.mkdir()
            target = str(folder / "runs.db")
            seen += collecting.kill_collections(nursery, target, folder, seed, kills=10 - seen["killed"])
            if seen["killed"] >= 10:
                break
    assert seen["killed"] == 10
    assert seen["judged and lost"] > 0  # some kills fell between a verdict and its storing, or the moments are wrong
