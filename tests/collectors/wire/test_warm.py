"""``warm`` of a source compiles every kernel that its live and recorded input uses."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("name", ["sflow", "hft", "packets"])
def test_ordinary_input_compiles_nothing_after_warm(name: str, tmp_path: Path):
    """Datagrams off a socket, files and captures run on kernels that warming has compiled, and the table loads none itself."""
    command = [sys.executable, str(Path(__file__).with_name("after_warm.py")), name, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["compiled"] == []
    assert found["kernels"] >= 8
