"""The engine whose data is in an etcd cluster, shared with other servers. The only part that knows gRPC."""
