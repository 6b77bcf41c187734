"""From samples to batches: rings of buffers, worker processes, normalising on the device."""
