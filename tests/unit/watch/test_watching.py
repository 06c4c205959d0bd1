"""Where watchers listen and whom they let in; what they do is in tests/faults/test_watch.py."""

import json
import os
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, suppress

import pytest

from nt_dist.parallel.launcher import is_loopback
from nt_dist.watch import watcher as module
from nt_dist.watch import watching
from nt_dist.watch.diagnosis import Limits, View
from nt_dist.watch.heartbeat import NANO, Heartbeat, map_shared, shared_file
from nt_dist.watch.link import MAX_LINE, Link
from nt_dist.watch.rank_process import RankProcess, work_of
from nt_dist.watch.watcher import MAX_STRANGERS, Watcher


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
    order = {"rank": 0, "size": 2, "host": "a", "limits": [15, 30, 10, 45], "secret": "of this job"}
    yield Watcher(None, Link(control), order)
    control.close()
    other.close()


@pytest.fixture
def ends(watcher):
    pair = socket.socketpair()
    link = Link(pair[0])
    watcher.strangers[link] = time.monotonic()
    yield link, pair[1]
    for end in pair:
        end.close()


@pytest.fixture
def come(watcher):
    """Connect to the watcher, and say something."""
    ends = []
    with ExitStack() as stack:
        server = watching._open_server(stack, "127.0.0.1")
        folder = os.path.dirname(server.getsockname())
        assert os.stat(folder).st_mode & 0o777 == 0o700  # nobody else gets as far
        watcher.accept_from(server)

        def connect(data=b""):
            ends.append(stack.enter_context(socket.socket(socket.AF_UNIX)))
            ends[-1].settimeout(5)
            ends[-1].connect(server.getsockname())
            ends[-1].sendall(data)
            for _ in range(3):
                watcher.attend(0.0)
            return ends[-1]

        yield connect
    assert not os.path.exists(folder)


def test_whoever_does_not_know_the_secret_is_few_and_short_lived(watcher, come, monkeypatch):
    hello = json.dumps({"secret": "of this job", "rank": 1, "host": "b"}).encode()
    come(hello + b"\n")
    strangers = [come() for _ in range(MAX_STRANGERS + 3)]
    assert len(watcher.strangers) == MAX_STRANGERS
    assert [end.recv(1) for end in strangers[:3]] == [b""] * 3  # the oldest are closed
    assert watcher.links[1] and not watcher.links[1].closed
    again = come(hello + b"\n")  # the watcher of rank 1 has died, and this is another
    assert again and not watcher.links[1].closed and len(watcher.links) == 1
    monkeypatch.setattr(module, "HELLO_SECONDS", 0.0)
    watcher.close_strangers()
    assert not watcher.strangers and not watcher.links[1].closed


@pytest.mark.parametrize("data", [b"[" * 100_000, b"[" * 900 + b"\n", b"x" * 2000])
def test_what_a_stranger_says_ends_its_connection_and_nothing_else(watcher, come, data):
    end = come()
    with suppress(BrokenPipeError, ConnectionResetError):
        end.setblocking(False)
        end.send(data)
    for _ in range(3):
        watcher.attend(0.0)
    watcher.close_strangers()
    assert not watcher.strangers and not watcher.links


def test_who_sends_without_end_does_not_keep_the_watcher(ends):
    link, other = ends
    other.sendall(b"\n".join([b"{}"] * 30_000))
    assert 0 < len(link.receive()) < 30_000


class _Written:
    """A link that keeps what is sent."""

    closed = False

    def __init__(self):
        self.sent = []

    def send(self, **message):
        self.sent.append(message)


@pytest.mark.parametrize(("size", "every"), [(2, 0.5), (512, 0.5), (4096, 2.048)])
def test_rank_0s_watcher_gets_and_sends_as_many_messages_as_it_can_take(size, every):
    """Formula against counted: what all others send in a second, and what it sends them, is bounded."""
    control, other = socket.socketpair()
    order = {"size": size, "host": "a", "limits": [15, 30, 10, 45], "secret": "", "main_host": "a"}
    with control, other:
        main, one = (Watcher(None, Link(control), order | {"rank": rank}) for rank in (0, 1))
        links = {rank: _Written() for rank in range(1, size)}
        main.links, one.links = dict(links), {0: _Written()}
        for view in main.views.values():
            view.unwatched = False
        seconds, start = 60, time.monotonic()
        for number in range(int(seconds / module.TICK)):
            now = start + number * module.TICK
            one.heard = now
            one.tell(now)
            if number < 40:  # it looks at all ranks each time, which takes a while here
                main.judge(now, 0.0)
        looks = round(every / module.TICK) * module.TICK  # messages go out where it looks about anyway
        assert len(one.links[0].sent) == pytest.approx(seconds / looks, abs=1)
        assert (size - 1) * len(one.links[0].sent) / seconds <= max(
            1.1 * module.MESSAGES, size / module.TICK if size < 1000 else 0
        )
        assert all(len(link.sent) == pytest.approx(20 / looks, abs=1) for link in links.values())
        before = len(one.links[0].sent)
        one.view.stopped = 0.5  # what is urgent does not wait
        one.tell(start + seconds - module.TICK + 0.01)
        one.tell(start + seconds - module.TICK + 0.02)
        assert len(one.links[0].sent) == before + 1 and one.links[0].sent[-1]["stopped"] == 0.5


def test_the_last_word_of_a_watcher_that_has_gone_is_heard_though_nothing_can_be_sent_to_it(ends):
    link, other = ends
    other.sendall(b'{"end": "it is over"}\n')
    other.close()
    link.send(step=5)
    assert link.receive() == [{"end": "it is over"}] and not link.closed
    assert link.receive() == [] and link.closed


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


@pytest.fixture
def rank(monkeypatch):
    """A rank whose work and place are set by hand; ``look(seconds)`` looks at it so much later."""
    descriptor = shared_file()
    heartbeat = Heartbeat(map_shared(descriptor), 45.0, 1800.0)
    process = RankProcess(os.getppid(), descriptor, descriptor)
    now, done, view = [time.monotonic_ns()], [0.0, 0], View(0)
    monkeypatch.setattr(time, "monotonic_ns", lambda: now[0])
    monkeypatch.setattr("nt_dist.watch.rank_process.work_of", lambda pid, without: tuple(done))
    limits = Limits(15.0, 30.0, 10.0, 45.0)

    def look(seconds, works=0.0, stands=""):
        for _ in range(int(seconds)):
            now[0] += NANO
            done[0] += works
            monkeypatch.setattr(process, "threads", lambda: stands)
            process.look(view, 0.0, limits)
        return view.late, view.stuck

    heartbeat.enter("building")
    yield look, heartbeat
    os.close(descriptor)


READS = 'Current thread 0x02 (most recent call first):\n  File "/src/nt_dist/engine/engine.py", line 7 in build\n'
WAITS = READS.replace("/src/nt_dist/engine/engine.py", "/lib/torch/distributed/distributed_c10d.py")
LOCKED = READS.replace("/src/nt_dist/engine/engine.py", "/src/nt_dist/files.py").replace("build", "lock")


def test_who_neither_beats_nor_works_for_as_long_as_a_stall_stands_still(rank):
    look, heartbeat = rank
    assert look(600, works=0.03) == (False, False)  # a processor's thirtieth is little, but work
    assert look(2, works=1.0) == look(40, stands=READS) == (False, False)
    assert look(12, stands=READS) == (True, False)
    heartbeat.beat()
    assert look(5, stands=READS) == (False, False)


def test_who_waits_for_others_is_stuck_and_not_late_and_who_waits_for_another_run_is_neither(rank):
    look, heartbeat = rank
    assert look(60, stands=WAITS) == (False, True)
    heartbeat.beat()
    assert look(5) == (False, False)
    assert look(300, stands=LOCKED) == (False, False)
    assert look(60, stands=READS) == (True, False)
    assert look(5, works=1.0) == (False, False)


def test_work_with_a_limit_of_its_own_is_not_asked_for(rank):
    look, heartbeat = rank
    for _ in range(2):
        heartbeat.enter("stepping")
    assert look(40, stands=READS) == (False, False)


def test_a_process_that_others_keep_from_the_processor_works():
    """At nice 19 on a busy machine it may get less than a hundredth of one."""
    code = "import os, sys\nos.nice(int(sys.argv[1])); os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
    program = [sys.executable, "-c", code + "print(flush=True)\nwhile True: pass"]
    with (
        subprocess.Popen([*program, "19"], stdout=-1) as poor,
        subprocess.Popen([*program, "0"], stdout=-1) as other,
    ):
        poor.stdout.read(1)
        other.stdout.read(1)
        before, began, worked = work_of(poor.pid, 0)[0], time.monotonic(), 0.0
        for _ in range(50):  # the kernel counts a wait when it is over
            time.sleep(0.2)
            worked, seconds = work_of(poor.pid, 0)[0] - before, time.monotonic() - began
            if worked > seconds / 2:
                break
        poor.kill()
        other.kill()
    assert worked > seconds / 2, (worked, seconds)


def test_the_work_of_a_process_is_that_of_its_children_too_and_not_its_watchers(tmp_path):
    code = "import sys, time\nwhile time.process_time() < 0.3: pass\nprint(flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1) as child:
        child.stdout.read(1)
        with_child, without = (work_of(os.getpid(), each)[0] for each in (0, child.pid))
        assert 0.2 < with_child - without < 5
        before = work_of(os.getpid(), child.pid)[1]
        (tmp_path / "file").write_bytes(bytes(1 << 20))
        assert work_of(os.getpid(), child.pid)[1] - before >= 1 << 20
        child.stdin.close()
