"""Objectives, views, sources of batches, and a training that can be killed."""
