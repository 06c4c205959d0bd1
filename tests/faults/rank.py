"""A rank without torch: ``python -m tests.faults.rank RANK SIZE FOLDER FAULT`` steps with the others, and then
something happens to the last of them. All that the watch needs of a rank, at a hundredth of a real one's start."""

import ctypes
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

from nt_dist.families import make_config
from nt_dist.watch.watching import watched

STALL, FAULT_AT, STEPS = 3.0, 5, 12
LONG_STALL = 600.0  # where it is not that the others stand still which ends them


class FolderMesh:
    """The collectives of a mesh, over files."""

    def __init__(self, rank, size, folder):
        self.rank, self.world_size, self.is_main = rank, size, rank == 0
        self._folder, self._number = folder, 0

    def gather_objects(self, thing):
        self._number += 1
        files = [self._folder / f"{self._number}-{rank}" for rank in range(self.world_size)]
        partial = files[self.rank].with_suffix(".part")
        partial.write_text(json.dumps(thing))
        partial.rename(files[self.rank])
        while not all(file.exists() for file in files):
            time.sleep(0.01)
        return [json.loads(file.read_text()) for file in files]

    def any(self, *flags):
        return tuple(map(any, zip(*self.gather_objects(flags), strict=True)))

    def broadcast_object(self, thing):
        return self.gather_objects(thing)[0]


def stop():
    os.kill(os.getpid(), signal.SIGSTOP)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def deadlock():
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()


def hold_the_interpreter():
    library, mutex = ctypes.PyDLL(None), ctypes.create_string_buffer(64)
    library.pthread_mutex_lock(mutex)
    library.pthread_mutex_lock(mutex)  # PyDLL keeps Python's lock, so that no thread of this process runs any more


def signal_watcher(number):
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    for pid in children:
        os.kill(int(pid), number)


def fall_silent():
    signal_watcher(signal.SIGSTOP)  # as on a host whose network is gone
    while True:
        time.sleep(1)


def work_for(seconds):
    """Be in one piece of work, all of it without a beat: a tenth of a processor is work enough."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        busy = time.process_time() + 0.05  # also where others have the processor for longer
        while time.process_time() < busy:
            pass
        time.sleep(0.45)


def read_for(seconds):
    """Read from a disk that is so slow that next to nothing is left to compute."""
    until = time.monotonic() + seconds
    with open("/dev/zero", "rb", buffering=0) as file:
        while time.monotonic() < until:
            file.read(1 << 17)
            time.sleep(STALL / 3)


def fail():
    raise ValueError("this rank is wrong")


FAULTS = {
    "stop": stop,
    "die": die,
    "deadlock": deadlock,
    "hold_the_interpreter": hold_the_interpreter,
    "fall_silent": fall_silent,
    "fail": fail,
}


def main(rank, size, folder, fault):
    mesh = FolderMesh(rank, size, folder)
    where = size - 1
    if fault.startswith("first_"):
        where, fault = 0, fault.removeprefix("first_")
    stall = LONG_STALL if fault in ("die", "fail") else STALL
    with watched(mesh, make_config({"run": {"stall_timeout": stall, "phase_timeout": 60.0}})) as heartbeat:
        for step in range(1, STEPS + 1):
            heartbeat.enter("compiling" if step == 1 else "stepping", step)
            mesh.gather_objects(step)
            if step != FAULT_AT:
                continue
            heartbeat.enter("evaluating")
            time.sleep(1.5)  # every watcher has connected and reported
            mesh.gather_objects(step)
            heartbeat.enter("stepping")
            if fault == "take_long":
                heartbeat.enter("saving")
                work_for(3 * STALL)
                continue
            if fault == "read_long":
                heartbeat.enter("building")
                read_for(3 * STALL)
                continue
            if fault.startswith("stand_"):
                heartbeat.enter(fault.removeprefix("stand_").replace("_", " "))
                if rank == where:
                    print("now", flush=True)
                    deadlock()
            if fault == "group_stop":
                os.write(1, b"stop us\n")  # in one go: the other says so too
                time.sleep(1)
                continue
            if fault.startswith("rewatched_"):
                signal_watcher(signal.SIGKILL)
                time.sleep(2.0)
                mesh.gather_objects(step)
                heartbeat.beat()
            if rank == where:
                print("now", flush=True)
                FAULTS[fault.removeprefix("rewatched_")]()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
