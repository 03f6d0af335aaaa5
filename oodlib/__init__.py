"""Out-of-distribution detection by clustering in the embedding space.

Images become embeddings, embeddings become clusters, distances to clusters become scores, scores become decisions
and tables. Each arrow is one module; importing the package itself loads none of them, unless
OODLIB_PLUGINS names files that add to them (see `oodlib.plugins`).
"""

import os

__version__ = "0.1.0"

if os.environ.get("OODLIB_PLUGINS"):
    from oodlib.plugins import load_plugins

    load_plugins(os.environ["OODLIB_PLUGINS"].split(os.pathsep))
