"""What the specifications share: servers and clients, a load and its checker, the HTTP contract, a simulated disk."""
