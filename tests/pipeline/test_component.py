"""Who asks for the end is heard, however often and however fast it is asked."""

import signal
import subprocess
import sys

# A service that is asked to stop by its own handlers, each of which is interrupted by the next signal.
ASKED_AT_ONCE = """
import os, signal, sys
from weft.pipeline.clock import SystemClock
from weft.pipeline.component import run

class Service:
    def start(self): print("started", flush=True)
    def step(self): clock.wait(0.01)
    def stop(self): print("stopped", flush=True)

def storm(frame, event, _):
    # Called at each line of a handler and of an event that it sets: one more signal.
    global left
    if event == "line" and frame.f_code.co_name in ("ask", "set") and left:
        left -= 1
        os.kill(os.getpid(), signal.SIGTERM)
    return storm

clock, left = SystemClock(), 50
sys.settrace(storm)
run(Service(), clock)
"""


def test_signals_that_interrupt_each_other_end_a_service() -> None:
    """Fifty requests to stop, each in the midst of the one before, stop it once and cleanly."""
    with subprocess.Popen([sys.executable, "-c", ASKED_AT_ONCE], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        process.send_signal(signal.SIGTERM)
        try:
            out, _ = process.communicate(timeout=20)
        finally:
            process.kill()
    assert (out, process.returncode) == ("stopped\n", 0)
