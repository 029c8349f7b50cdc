"""The plumbing of the notebooks. To read it, start at the top: each imports only from above.

seeding    makes a run repeatable with one call
device     probes once what this machine is, and which number format it is fast in
sources    finds texts and models in a PyPI package, a file or the Hub, and checks their hashes
config     holds every setting of a run, the presets, and readers' own TOML files
runs       keeps what one notebook makes for the next, each file with a manifest
metrics    scores retrieval with truncated embeddings: one encoding, every prefix
compare    has the controls that need no training, and intervals of differences
search     searches exactly, reranks a shortlist, and compares what two searches find
databases  finds a PostgreSQL, or starts one that ends with the notebook
plots      gives figures and tables one look
triplets   streams rows, keeps the usable ones, and makes a collection of them
models     loads, rotates and encodes with models, and writes their cards
training   has the batches, dev scores and progress that the trainer needs
run        is the main command: python -m helpers.run wikipedia
"""
