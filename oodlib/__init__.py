"""Out-of-distribution detection by clustering in the embedding space.

Images become embeddings, embeddings become clusters, distances to clusters become scores, scores become decisions
and tables. Each arrow is one module; importing the package itself loads none of them.
"""

__version__ = "0.1.0"
