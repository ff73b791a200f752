"""The engine that owns a directory: log, snapshots, state. Knows no sockets."""
