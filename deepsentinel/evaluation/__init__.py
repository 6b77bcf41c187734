"""Tasks, floors that a model must beat, metrics that add up, intervals by tile."""
