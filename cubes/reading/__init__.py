"""From an asset's bytes to pixels on a grid: what may be opened, how, and one read function."""
