"""The Zarr store: layout, plan and ledger, regions written once, seal, verify, repair."""
