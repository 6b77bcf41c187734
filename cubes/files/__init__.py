"""Products as files on a disk: GeoTIFFs, HyP3, OPERA CSLC-S1 and RTC-S1."""
