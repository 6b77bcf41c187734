"""From stores to samples: windows, splits, statistics, and the short way to their numbers."""
