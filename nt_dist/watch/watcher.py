"""The process that watches one rank: ``python -m nt_dist.watch.watcher`` (``watching.py`` starts it).

A process and not a thread: it sees its rank also where that holds its interpreter lock for good, is stopped (SIGSTOP)
or dead, and can still end it then. The watchers report to that of rank 0 over TCP, which decides for all; one that
hears nothing from there any more ends its own rank. No disk is shared, and with one rank there is no network.

Messages are lines of JSON; the first of a connection carries the job's secret. Imports only the standard library, so
that it starts within milliseconds and stays small.
"""

import contextlib
import functools
import hmac
import json
import os
import resource
import select
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

from nt_dist.watch.diagnosis import Limits, View, describe, is_lost, report
from nt_dist.watch.link import MAX_LINE, SEND_SECONDS, Link
from nt_dist.watch.rank_process import RankProcess

TICK = 0.5  # seconds between two looks
MESSAGES = (
    2000  # a second that rank 0's watcher gets, at most, and sends: of thousands of ranks each reports more rarely
)
GAP = 5.0  # a look that comes so much later: this process was stopped as well, and nobody is to blame
DUMP_SECONDS = 3.0  # for all ranks to say where they stand
LINGER = 10.0  # how long rank 0's watcher outlives its rank to serve the others
MAX_HELLO = 1 << 10  # bytes of a line before the secret is known
HELLO_SECONDS, MAX_STRANGERS = 5.0, 64  # for it, and connections that have not said it
AGAIN_SECONDS = 2.0  # between two tries to reach rank 0's watcher
REPORTED = {"phase", "step", "beats", "idle", "late", "stuck", "stopped", "gone", "code", "threads"}  # of a View


def say(text: str) -> None:
    """Write to standard error in one go, as others write as well; a reader that reads no more is not waited for."""
    with contextlib.suppress(OSError):
        if select.select([], [2], [], SEND_SECONDS)[1]:
            os.write(2, text.encode() + b"\n")


class Watcher:
    """One watcher; that of rank 0 has links to all others, each other one has a link to it.

    ``control`` is the link to the rank itself, which tells by its end that it is dead; ``order`` is what came over it:
    rank, size, host, limits, and where the watcher of rank 0 listens (path or port, and address).
    """

    def __init__(self, process: RankProcess, control: Link, order: dict[str, Any]):
        self.process, self.control, self.order = process, control, order
        self.limits, self.rank = Limits(*order["limits"]), order["rank"]
        self.view = View(self.rank, order["host"])
        self.views = {rank: View(rank, unwatched=True) for rank in range(order["size"])} if self.rank == 0 else {}
        self.views[self.rank] = self.view
        self.links: dict[int, Link] = {}
        self.strangers: dict[Link, float] = {}  # who has not said the secret, and since when
        self.is_alone = False  # rank 0's watcher cannot be reached
        self.has_main_left = False
        self.selector = selectors.DefaultSelector()
        self.listen_to(control, lambda message: None)
        self.heard = self.asked = self.last_tick = time.monotonic()
        self.every = max(TICK, min(order["size"] / MESSAGES, self.limits.silence / 4))  # seconds between two messages
        self.told, self.news = -self.every, None  # when the last was sent, and what it said that is urgent
        self.has_announced = False
        self.answered: set[int] = set()  # ranks that have said where they stand
        self.failed_at = self.left_at = None

    def run(self) -> None:
        """Watch until the rank has left, or has been ended."""
        while True:
            self.attend(TICK / 10 if self.control.closed else TICK)
            now = time.monotonic()
            if now - self.last_tick >= TICK / 2 or self.control.closed:
                self.tick(now)

    # -- messages --------------------------------------------------------------------------------------------------

    def attend(self, seconds: float) -> None:
        """Wait for messages and take those that have come."""
        for key, _ in self.selector.select(seconds):
            key.data()

    def listen_to(self, link: Link, handle: Callable[[dict[str, Any]], None]) -> None:
        """Have a link's messages handled as they come."""

        def read() -> None:
            for message in link.receive():
                handle(message)

        link.selector = self.selector
        self.selector.register(link.connection, selectors.EVENT_READ, read)

    def accept_from(self, server: socket.socket) -> None:
        """Rank 0: let the other watchers come."""
        with contextlib.suppress(OSError, ValueError):  # thousands of ranks take as many descriptors
            hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        server.setblocking(False)

        def accept() -> None:
            with contextlib.suppress(OSError):
                link = Link(server.accept()[0])
                link.limit = MAX_HELLO
                self.listen_to(link, functools.partial(self.take, link))
                self.strangers[link] = time.monotonic()
                self.close_strangers()

        self.selector.register(server, selectors.EVENT_READ, accept)

    def close_strangers(self) -> None:
        """Rank 0: close the connections that should have said the secret, and the oldest of too many."""
        now, many = time.monotonic(), len(self.strangers) - MAX_STRANGERS
        for number, (link, since) in enumerate(list(self.strangers.items())):
            if link.closed or number < many or now - since > HELLO_SECONDS:
                link.close()
                del self.strangers[link]

    def connect(self, seconds: float) -> None:
        """Another rank: go to rank 0's watcher, or perhaps to another one that has taken its place."""
        where, address = self.order["where"], self.order["address"]
        try:
            if isinstance(where, str):
                connection = socket.socket(socket.AF_UNIX)
                connection.settimeout(seconds)
                connection.connect(where)
            else:
                connection = socket.create_connection((address, where), timeout=seconds)
        except OSError as problem:
            if not self.is_alone:
                say(f"warning: rank {self.rank} on {self.view.host} is watched alone: {address}: {where}: {problem}")
            self.is_alone = True
            return
        link = Link(connection)
        self.is_alone = False
        self.heard = time.monotonic()
        self.links[0] = link
        self.listen_to(link, self.follow)
        link.send(secret=self.order["secret"], rank=self.rank, host=self.view.host)

    def take(self, link: Link, message: dict[str, Any]) -> None:
        """Rank 0: a message of another watcher, the first of which must know the secret."""
        if link.rank is None:
            rank, secret = message.get("rank"), self.order["secret"].encode()
            if not hmac.compare_digest(str(message.get("secret")).encode(), secret) or rank not in self.views:
                link.close()
                return
            self.strangers.pop(link, None)
            if rank in self.links:  # of a watcher before it
                self.links[rank].close()
            link.rank, link.limit, self.links[rank] = rank, MAX_LINE, link
            self.views[rank].host, self.views[rank].silent = str(message.get("host")), 0.0
            return
        view = self.views[link.rank]
        if "threads" in message:
            self.answered.add(link.rank)
        for name in REPORTED & message.keys():
            setattr(view, name, message[name])
        view.silent = 0.0

    def follow(self, message: dict[str, Any]) -> None:
        """Another rank: what rank 0's watcher says."""
        self.heard = time.monotonic()
        if "dump" in message:
            self.links[0].send(threads=self.process.threads())
        elif "end" in message:
            say(f"error: rank {self.rank} on {self.view.host} is ended: {message['end']}")
            self.leave(kill=True)
        elif "done" in message:  # rank 0 has left well, and its watcher with it
            self.links.pop(0).close()
            self.has_main_left = True

    def tell_others(self, **message: Any) -> None:
        """Rank 0: send a message to all other watchers."""
        for link in self.links.values() if self.rank == 0 else ():
            link.send(**message)

    def is_time(self, now: float) -> bool:
        """Whether the next of what is sent again and again is due; it counts as sent."""
        if now - self.told < self.every - TICK / 4:  # a look may come a little early
            return False
        self.told = now
        return True

    # -- diagnosis -------------------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Look at the rank, tell rank 0's watcher or, there, judge all."""
        since, self.last_tick = now - self.last_tick, now
        gap = since if since > GAP else 0.0
        self.process.look(self.view, gap, self.limits)
        if self.view.gone and self.view.code is None and not self.has_announced:
            self.has_announced = True  # at once: it is the first error of the job, and what others say follows from it
            say(f"error: {describe(self.view, self.limits)}")
        if self.rank == 0:
            self.judge(now, 0.0 if gap else since)
            return
        self.heard = now if gap else self.heard
        self.tell(now)
        if self.view.gone:
            self.leave()

    def tell(self, now: float) -> None:
        """Another rank: report, and end the rank if rank 0's watcher is silent or, gone, can judge no more."""
        link = self.links.get(0)
        if link and not link.closed:
            news = self.view.gone, self.view.late, self.view.stuck, self.view.stopped > 0
            if news != self.news or self.is_time(now):
                self.news = news
                link.send(**{name: value for name, value in vars(self.view).items() if name in REPORTED - {"threads"}})
            if now - self.heard >= self.limits.silence:
                first = View(0, self.order["main_host"], self.view.phase, self.view.step, silent=now - self.heard)
                self.end([first, self.view])
            return
        if is_lost([self.view], self.limits):
            self.end([self.view])
        if not self.has_main_left and now - self.asked >= AGAIN_SECONDS:
            self.asked = now
            self.connect(AGAIN_SECONDS / 2)

    def judge(self, now: float, since: float) -> None:
        """Rank 0: decide whether the job can go on."""
        self.close_strangers()
        for rank, link in self.links.items():
            view = self.views[rank]
            view.silent += since
            view.unwatched = link.closed and not view.gone
        if self.is_time(now):
            self.tell_others(heard=True)  # this host is there
        views = list(self.views.values())
        if any(view.failed for view in views):
            self.failed_at = self.failed_at or now
        others = [view for view in views if not view.gone and not view.unwatched]
        outlived = self.failed_at is not None and now - self.failed_at >= self.limits.grace
        if others and (outlived or is_lost(views, self.limits)):
            self.end(views)
        if self.view.gone:
            self.left_at = self.left_at or now
            if not others or (not self.view.failed and now - self.left_at > LINGER):
                self.tell_others(done=True)
                self.leave()

    def end(self, views: list[View]) -> None:
        """Ask all ranks where they stand, say who is at fault, end them all."""
        self.tell_others(dump=True)
        self.view.threads = self.process.threads()
        until = time.monotonic() + DUMP_SECONDS
        asked = list(self.links) if self.rank == 0 else []
        while asked and time.monotonic() < until:
            self.attend(0.1)
            if self.is_time(time.monotonic()):
                self.tell_others(heard=True)
            gone = {rank for rank in asked if self.views[rank].gone or self.links[rank].closed}
            asked = [rank for rank in asked if rank not in self.answered | gone]
        text = report(views, self.limits)
        say(text)
        self.tell_others(end=text.splitlines()[0].removeprefix("error: "))
        self.leave(kill=True)

    def leave(self, kill: bool = False) -> None:
        """End this process, and its rank before where that has not left."""
        if kill:
            self.process.kill()
            if self.rank == 0 and isinstance(where := self.order["where"], str):  # what the rank leaves behind
                with contextlib.suppress(OSError):
                    os.unlink(where)
                    os.rmdir(os.path.dirname(where))
        os._exit(0)


def main(arguments: list[str]) -> None:
    """Watch the parent process; see :func:`nt_dist.watch.watching.watched`, which starts this."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)  # they are for the rank, and this process goes when the rank has gone
    pid, shared, dump, control, *server = map(int, arguments)
    connection = socket.socket(fileno=control)
    order = json.loads(connection.makefile("rb", buffering=0).readline(MAX_LINE) or b"null")
    if order is None:  # the rank died at once
        return
    watcher = Watcher(RankProcess(pid, shared, dump), Link(connection), order)
    if server:
        watcher.accept_from(socket.socket(fileno=server[0]))
    elif watcher.rank:
        watcher.connect(watcher.limits.silence)
    watcher.control.send(ready=True)
    watcher.run()


if __name__ == "__main__":
    main(sys.argv[1:])
