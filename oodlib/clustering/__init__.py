"""Clustering: embeddings become assignments and centres; and the geometry of clusters, neural collapse included."""

from oodlib.clustering.clusters import CLUSTERINGS, Clusters, choose_n_clusters, cluster

__all__ = ["CLUSTERINGS", "Clusters", "choose_n_clusters", "cluster"]
