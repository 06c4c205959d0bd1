"""Where watchers listen and whom they let in; what they do is in tests/faults/test_watch.py."""

import socket

import pytest

from nt_dist.parallel.launcher import is_loopback
from nt_dist.watch import watching
from nt_dist.watch.watcher import MAX_LINE, Link, Watcher


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("localhost", True),
        ("10.0.0.1", False),
        ("node1", False),
    ],
)
def test_the_loopback_of_every_machine(address, expected):
    assert is_loopback(address) == expected


@pytest.mark.parametrize(
    ("address", "means", "listens"),
    [
        ("127.0.0.1", "127.0.0.1", "127.0.0.1"),
        ("node1", "127.0.1.1", "0.0.0.0"),  # as /etc/hosts often has the host's own name: nobody else comes there
        ("node2", "192.0.2.1", "0.0.0.0"),  # no address of this machine
    ],
)
def test_rank_0_listens_where_the_others_come(monkeypatch, address, means, listens):
    resolve = socket.getaddrinfo
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, *rest, **named: resolve(means if host == address else host, *rest, **named)
    )
    with watching._listen(address) as server:
        assert server.getsockname()[0] == listens


@pytest.fixture
def watcher():
    control, other = socket.socketpair()
    order = {"rank": 0, "size": 2, "host": "a", "limits": [15, 30, 10], "secret": "of this job"}
    yield Watcher(None, Link(control), order)
    control.close()
    other.close()


@pytest.fixture
def ends():
    pair = socket.socketpair()
    yield Link(pair[0]), pair[1]
    for end in pair:
        end.close()


def test_only_who_knows_the_secret_is_heard(watcher, ends):
    link, _ = ends
    watcher.take(link, {"secret": "another", "rank": 1, "host": "b"})
    assert link.closed and not watcher.links


def test_only_ranks_of_the_job_are_heard(watcher, ends):
    link, _ = ends
    watcher.take(link, {"secret": "of this job", "rank": 2, "host": "b"})
    assert link.closed and not watcher.links


def test_a_report_changes_what_reports_may_change(watcher, ends):
    link, _ = ends
    watcher.take(link, {"secret": "of this job", "rank": 1, "host": "b"})
    watcher.take(link, {"phase": "saving", "step": 3, "rank": 0, "host": "c", "unwatched": False, "place": "x"})
    view = watcher.views[1]
    assert (view.rank, view.host, view.phase, view.step, view.unwatched) == (1, "b", "saving", 3, True)


@pytest.mark.parametrize("data", [b"{no json\n", b"x" * (MAX_LINE + 1)], ids=["no json", "endless"])
def test_a_link_with_anything_else_is_closed(ends, data):
    link, other = ends
    other.settimeout(5)
    messages = []
    for begin in range(0, len(data), 1 << 14):
        if not link.closed:
            other.sendall(data[begin : begin + (1 << 14)])
            messages += link.receive()
    assert link.closed and messages == []
