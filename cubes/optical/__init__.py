"""Optical rules: nadir-adjusted reflectance, cloud masks by other policies, composites."""
