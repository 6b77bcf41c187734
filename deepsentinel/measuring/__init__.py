"""Measuring a machine: the codec's limit, the loader's rate, the device's, and both together."""
