"""The demo: simulated archives behind a real STAC API, and the whole road over them."""
