"""Where the real inputs lie that the project may not carry: beside the project, or where ``WEFT_SHARED_DATA`` says."""

import os
from pathlib import Path

SHARED = Path(os.environ.get("WEFT_SHARED_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
