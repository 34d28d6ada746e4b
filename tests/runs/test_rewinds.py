"""Which batch each step is trained on after rewinds, against a run that is played through batch by batch."""

import json
import random
import sys

import pytest

from mmjax.core.config import ConfigError
from mmjax.runs.rewinds import FILE, Rewind, Rewinds


def test_without_rewinds_each_step_has_its_own_batch(tmp_path):
    rewinds = Rewinds(tmp_path)
    assert [rewinds.next_batch(step) for step in range(5)] == [0, 1, 2, 3, 4]
    assert rewinds.next_rewind(0) == sys.maxsize
    assert not (tmp_path / FILE).exists()


def test_one_rewind_leaves_out_the_batches_up_to_the_spikes_own(tmp_path):
    rewinds = Rewinds(tmp_path)
    # Step 14 is trained on batch 13; the state after 12 steps goes on with batch 14.
    assert rewinds.add(spike_step=14, restored_step=12) == Rewind(spike_step=14, restored_step=12, skipped_batches=2)
    assert [rewinds.next_batch(step) for step in (0, 11, 12, 13, 20)] == [0, 11, 14, 15, 22]
    assert rewinds.next_rewind(0) == rewinds.next_rewind(11) == 12 and rewinds.next_rewind(12) == sys.maxsize


@pytest.mark.parametrize("seed", range(30))
def test_any_rewinds_agree_with_a_run_played_batch_by_batch(seed, tmp_path):
    """The player reads on and on in the data; going back it forgets what it trained on, but not what it has read."""
    draw = random.Random(seed)
    rewinds, trained, position = Rewinds(tmp_path), [], 0
    for _ in range(6):
        for _ in range(draw.randrange(1, 12)):
            trained.append(position)
            position += 1
        spike = len(trained)
        after = draw.randrange(0, spike)
        del trained[after:]
        rewinds.add(spike_step=spike, restored_step=after)
        assert rewinds.next_batch(after) == position
        rewinds = draw.choice([rewinds, Rewinds(tmp_path)])
    trained += range(position, position + 5)
    assert [rewinds.next_batch(step) for step in range(len(trained))] == trained
    # From one place where batches are left out to the next, batches follow one another.
    step = 0
    while step < len(trained):
        until = min(rewinds.next_rewind(step), len(trained))
        assert trained[step:until] == [*range(trained[step], trained[step] + until - step)]
        step = until


def test_the_goal_is_the_last_checkpoint_before_the_spike_and_next_time_an_earlier_one(tmp_path):
    rewinds = Rewinds(tmp_path)
    assert rewinds.choose_step(9, saved=[]) == 0
    assert rewinds.choose_step(9, saved=[4, 8]) == 8
    assert rewinds.choose_step(8, saved=[4, 8]) == 4  # the spike's own step is not before it
    rewinds.add(spike_step=9, restored_step=8)
    assert rewinds.choose_step(11, saved=[4, 8]) == 4
    assert rewinds.choose_step(11, saved=[8]) == 8
    assert rewinds.choose_step(30, saved=[8, 20]) == 20


DAMAGED = ["", "[", "{}x", '[{"spike_step": 3}]',
           '[{"spike_step": 3, "restored_step": -1, "skipped_batches": 2}]', "[1]", "3",
           '[{"spike_step": 3, "restored_step": 1, "skipped_batches": 2.0}]', b"\xff\xfe"]  # fmt: skip


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_file_is_an_error_and_not_a_run_with_other_batches(content, tmp_path):
    (tmp_path / FILE).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError, match=r"rewinds\.json is damaged"):
        Rewinds(tmp_path)


def test_the_file_is_plain_and_holds_every_rewind(tmp_path):
    rewinds = Rewinds(tmp_path)
    rewinds.add(spike_step=14, restored_step=12)
    rewinds.add(spike_step=15, restored_step=8)
    entries = json.loads((tmp_path / FILE).read_text())
    assert [entry["restored_step"] for entry in entries] == [12, 8]
    assert [*tmp_path.iterdir()] == [tmp_path / FILE]
    assert Rewinds(tmp_path).all == rewinds.all
