"""Whether there is anything to learn from: made-up samples are good for ranges at most.

Stands under whatever chooses, fits or teaches by what samples show. Noise excites other units than pictures or texts do, so units chosen by it, weights
fitted to it and students taught on it look right on noise alone.
"""

from __future__ import annotations

from edgeopt.protocols import Evidence


def has_real_samples(evidence: Evidence) -> bool:
    """Whether there are calibration samples that somebody gave."""
    return evidence.sample_count > 0 and not evidence.synthetic
