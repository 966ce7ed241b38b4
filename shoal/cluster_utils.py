"""The name under which Ray programs know `shoal.testing.cluster`."""

from shoal.testing.cluster import Cluster, ClusterNode

__all__ = ["Cluster", "ClusterNode"]
