"""Which rank is at fault, and what is said of it, from the reports of all."""

import pytest

from nt_dist.watch.diagnosis import Limits, View, culprits, is_lost, report

LIMITS = Limits(stopped=15.0, silence=30.0, grace=10.0, idle=45.0)
WAITING = """Thread 0x01 (most recent call first):
  File "/lib/python3.11/threading.py", line 3 in wait

Current thread 0x02 (most recent call first):
  File "/lib/torch/distributed/distributed_c10d.py", line 9 in all_reduce
  File "/src/nt_dist/parallel/mesh.py", line 5 in all_reduce
  File "/src/train.py", line 1 in <module>
"""
BUSY = """Current thread 0x02 (most recent call first):
  File "/src/nt_dist/text/samples.py", line 7 in sample
  File "/src/train.py", line 1 in <module>
"""


def view(rank, **changes):
    return View(rank, f"n{rank}", "stepping", **{"step": 7, "beats": 20, "idle": 50.0, **changes})


@pytest.mark.parametrize(
    ("views", "at_fault"),
    [
        ([view(0, late=True), view(1, gone=True)], [1]),
        ([view(0, late=True), view(1, stopped=14.0)], [1]),
        ([view(0, late=True), view(1, silent=29.0)], [1]),
        ([view(0, late=True), view(1, unwatched=True)], [1]),
        ([view(0, late=True), view(1, gone=True, code=0)], [0]),
        ([view(0, late=True, threads=WAITING), view(1, late=True, threads=BUSY)], [1]),
        ([view(0, late=True, threads=WAITING), view(1, threads=BUSY, idle=40.0)], [1]),
        ([view(0, late=True, threads=WAITING), view(1, late=True, threads=WAITING, step=6)], [1]),
        ([view(0, late=True, threads=WAITING), view(1, threads=BUSY, idle=1.0)], [0]),
        ([view(0, late=True), view(1, late=True), view(2, late=True, beats=19)], [2]),
    ],
)
def test_the_rank_that_others_wait_for_is_named(views, at_fault):
    assert [each.rank for each in culprits(views, LIMITS)] == at_fault


@pytest.mark.parametrize(
    ("change", "lost"),
    [
        ({}, False),
        ({"late": True}, True),
        ({"stopped": 15.0}, True),
        ({"stopped": 14.0}, False),
        ({"silent": 30.0}, True),
        ({"silent": 29.0}, False),
        ({"silent": 300.0, "unwatched": True}, False),  # its rank may be well: the others would notice if not
        ({"late": True, "gone": True, "code": 0}, False),
        ({"stuck": True}, False),  # the other one works
    ],
)
def test_what_ends_a_job(change, lost):
    assert is_lost([view(0), view(1, **change)], LIMITS) == lost


def test_ranks_that_all_wait_for_each_other_end_a_job():
    stuck, gone = view(0, stuck=True), view(2, gone=True, code=0)
    assert is_lost([stuck, view(1, stuck=True), gone], LIMITS)
    assert not is_lost([stuck], LIMITS)  # what is known of others is not known here


def test_a_rank_that_waits_for_another_run_is_told_from_one_that_stands():
    lock = 'Current thread 0x02 (most recent call first):\n  File "/src/nt_dist/files.py", line 98 in lock\n'
    assert view(0, threads=lock).waits_for_another_run and not view(0, threads=lock).waits
    assert not view(0, threads=BUSY).waits_for_another_run and not view(0).waits_for_another_run


def test_the_report_names_the_fault_first_and_groups_the_others():
    others = [view(rank, late=True, threads=WAITING) for rank in (0, 1, 2, 4)]
    lines = report([*others, view(3, late=True, idle=46.0, threads=BUSY)], LIMITS).splitlines()
    assert lines[0] == "error: rank 3 on n3 has stood still for 46 s in step 7 (stepping)"
    assert lines[1] == "where the threads of rank 3 stand:" and "samples.py" in lines[3]
    assert sum(line.startswith("rank 0-2,4: step 7 (stepping), ") for line in lines) == 1


def test_hundreds_of_ranks_at_fault_are_counted():
    lines = report([view(rank, unwatched=True) for rank in range(100)], LIMITS).splitlines()
    assert lines[8] == "error: and 92 more ranks: 8-99" and len(lines) == 10


def test_where_a_rank_stands():
    at, ours = view(0, threads=WAITING).innermost.split(", called from ")
    assert "distributed_c10d.py" in at and "nt_dist/parallel/mesh.py" in ours
    assert view(0, threads=BUSY).innermost == 'File "/src/nt_dist/text/samples.py", line 7 in sample'
    assert view(0).innermost == "where is not known"
