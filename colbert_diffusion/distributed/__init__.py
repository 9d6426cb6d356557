"""Many machines, one ordinary index: a Ray cluster encodes, compresses, searches and serves; the driver writes the files.

cluster.py: the driver's side of work that ends. tasks.py: what a worker runs of it.
deploying.py: the driver's side of serving. replicas.py: what a replica runs.
"""

from .cluster import RayCluster

__all__ = ["RayCluster"]
