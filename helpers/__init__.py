"""The plumbing of the notebooks. To read it, start at the top: each imports only from above.

seeding     makes a run repeatable with one call
device      probes once what this machine is, and which number format it is fast in
config      holds every setting of a run, the presets, and readers' own TOML files
files       reads readers' own CSV, TSV, JSONL and Parquet, and says what is wrong with them
packages    finds models and texts inside PyPI packages, and checks their hashes
hub         streams rows and fetches models with the Hub's own libraries
sources     looks up, once a run, what its settings leave open
runs        keeps what one notebook makes for the next, each file with a manifest
metrics     scores retrieval with truncated embeddings: one encoding, every prefix
compare     has the controls that need no training, and intervals of differences
search      searches exactly, reranks a shortlist, and compares what two searches find
databases   finds a PostgreSQL, or starts one that ends with the notebook
plots       gives figures and tables one look
rows        reads rows of a package, a file or the Hub, one at a time
triplets    keeps the usable rows, and counts what becomes of the others
collection  makes a corpus, queries and qrels of them, and splits the queries
models      loads, rotates and encodes with models
sharing     writes a model for others: files that servers read, its card, and scores to share
training    has the batches, dev scores and progress that the trainer needs
forecast    says how long a run may take, and whether it agrees with the published one
execution   runs a notebook cell by cell, and prints how far it is
run         is the main command: python -m helpers.run wikipedia
"""
