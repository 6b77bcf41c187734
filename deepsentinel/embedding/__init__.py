"""A model over whole cubes: windows with trimmed margins, and the store they fill."""
