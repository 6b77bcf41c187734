"""Polygons meet cubes: vector tables, labels made by rasterising, per-field time series."""
