"""What ships for the tests of programs that use shoal: real clusters on one machine (`shoal.testing.cluster`)."""

from shoal.testing.cluster import Cluster, ClusterNode

__all__ = ["Cluster", "ClusterNode"]
