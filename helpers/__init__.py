"""The plumbing under the Matryoshka notebooks: one module, one job.

Imports run one way: ``config`` and ``metrics`` import nothing from here, everything else
may import them, and no module imports a notebook.
"""
