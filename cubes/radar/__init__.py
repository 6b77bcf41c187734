"""Radar rules: coherence and phase of complex images, local incidence, speckle filters."""
