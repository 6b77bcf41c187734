"""What DeepSentinel's speed is measured with: asv classes, which tests/test_benchmarks.py runs too.

``make bench`` runs all of it with asv; ``python -m benchmarks.build`` (likewise ``open``,
``stream`` and ``train``) prints one table in which every rival ran on the same machine, on the
same data, in the same process. Ratios are the result; seconds are only their ingredients.
"""

from __future__ import annotations

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLOSC_NTHREADS"):
    # Parallelism comes from the tasks of whoever is measured, never from inside a library. Here,
    # because numpy and torch read these when they are loaded.
    os.environ.setdefault(_name, "1")
