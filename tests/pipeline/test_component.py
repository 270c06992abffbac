"""A service stops on signals, however many and however fast."""

import signal
import subprocess
import sys

# A service whose signal handlers are each interrupted by the next signal.
SIGNAL_STORM = """
import os, signal, sys
from weft.pipeline.clock import SystemClock
from weft.pipeline.component import run

class Service:
    def start(self): print("started", flush=True)
    def step(self): clock.wait(0.01)
    def stop(self): print("stopped", flush=True)

def storm(frame, event, _):
    # Runs at each line of a handler and of an event that it sets: send one more signal.
    global left
    if event == "line" and frame.f_code.co_name in ("request", "set") and left:
        left -= 1
        os.kill(os.getpid(), signal.SIGTERM)
    return storm

clock, left = SystemClock(), 50
sys.settrace(storm)
run(Service(), clock)
"""


def test_signals_that_interrupt_each_other_end_a_service() -> None:
    """Fifty stop signals, each during the handler of the one before, stop the service once and cleanly."""
    with subprocess.Popen([sys.executable, "-c", SIGNAL_STORM], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        process.send_signal(signal.SIGTERM)
        try:
            out, _ = process.communicate(timeout=20)
        finally:
            process.kill()
    assert (out, process.returncode) == ("stopped\n", 0)
