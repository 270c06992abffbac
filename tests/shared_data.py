"""The folder of real inputs that may not be part of the project: beside it, or ``WEFT_SHARED_DATA``."""

import os
from pathlib import Path

SHARED = Path(os.environ.get("WEFT_SHARED_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
