"""A fair race: the same whole batches out of our store and out of everyone else's formats.

``python -m benchmarks.race --make-env DIR`` makes a throw-away environment with litdata,
webdataset, torchgeo, MosaicML streaming and TensorStore beside what the project needs;
``python -m benchmarks.race --env DIR`` runs the race in it and prints the table. Without ``--env``
those rivals that the present environment lacks stand in the table with the reason.

`field` has the samples and what a rival is, `arrays` those that read slices of arrays, `formats`
those that store samples, `images` GeoTIFF, `env` the environment.
"""
