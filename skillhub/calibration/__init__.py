"""Calibration: what the parts of a fine-tune are for, from example prompts, so that packing spends bytes where they matter.

:mod:`.texts` makes rows of prompts, which the tuned model answers, and of general text; :mod:`.recording` runs the tuned model over them and
notes what goes into each linear layer and which gradient comes back to it; :mod:`.moments` turns that into the metrics
that :mod:`skillhub.codecs.allocation` measures errors in.
"""

from __future__ import annotations

from skillhub.calibration.moments import Calibration
from skillhub.calibration.recording import calibrate

__all__ = ["Calibration", "calibrate"]
