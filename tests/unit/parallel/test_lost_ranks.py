"""A rank that lost another says so in a line; other errors stay what they are."""

import pytest

from nt_dist.errors import RunError
from nt_dist.parallel.agree import naming_lost_ranks

GLOO = (
    "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:537] Read error [10.0.0.3]:16261: Connection reset by peer. "
    "This is typically caused by a remote worker crashing."
)
NCCL = "NCCL error in: ProcessGroupNCCL.cpp\nncclRemoteError: A call failed possibly due to a network error"


@pytest.mark.parametrize(
    "message, said", [(GLOO, r"\(Connection reset by peer: 10\.0\.0\.3\)"), (NCCL, r"\(ncclRemoteError\)")]
)
def test_a_lost_rank_is_one_line(message, said):
    line = rf"^rank 2 on \S+ lost another rank {said}; .*first error"
    with pytest.raises(RunError, match=line) as caught, naming_lost_ranks(2):
        raise RuntimeError(message)
    assert "\n" not in str(caught.value)


def test_another_error_passes():
    with pytest.raises(RuntimeError, match="^shapes differ$"), naming_lost_ranks(0):
        raise RuntimeError("shapes differ")
