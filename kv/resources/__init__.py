"""What each path of the HTTP interface does; /metrics is in kv/metrics.py. Knows no ZeroMQ and no batches.

A resource reads a request and answers it by the means of kv/request.py; what it raises becomes an answer there.
"""
