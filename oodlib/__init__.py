"""Out-of-distribution detection by clustering in the embedding space.

Images become embeddings, embeddings become clusters, distances to clusters become scores, scores become decisions
and tables. Each arrow is a sub-package; importing this one loads none of them.
"""

__version__ = "0.2.0"
