"""The table of a job's states."""

import pytest

from backend.jobs.states import ENDED, LIVE, MOVES, JobState, sources_of


def test_every_state_is_live_or_ended() -> None:
    assert {JobState.QUEUED, JobState.RUNNING} == LIVE
    assert {JobState.SUCCESS, JobState.FAILED, JobState.CANCELLED} == ENDED


@pytest.mark.parametrize("state", sorted(ENDED))
def test_nothing_leaves_an_end(state: JobState) -> None:
    assert MOVES[state] == frozenset()
    assert all(state not in sources_of(target) for target in JobState)


def test_only_a_running_job_succeeds_or_goes_back() -> None:
    assert sources_of(JobState.SUCCESS) == [JobState.RUNNING]
    assert sources_of(JobState.QUEUED) == [JobState.RUNNING]
    assert sources_of(JobState.RUNNING) == [JobState.QUEUED]
    assert sources_of(JobState.CANCELLED) == [JobState.QUEUED, JobState.RUNNING]
