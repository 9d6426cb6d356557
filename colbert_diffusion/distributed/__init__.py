"""Many machines, one ordinary index: a Ray cluster encodes shards and compresses chunks, the driver writes the files.

cluster.py: the driver's side. tasks.py: what a worker runs.
"""

from .cluster import RayCluster

__all__ = ["RayCluster"]
