"""One client's bytes, in and out: HTTP, with its limits and deadlines. Knows no routes and no data."""
