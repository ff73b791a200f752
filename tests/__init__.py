"""Specifications of the server, and beside them what they share, the kill lab, the bench and load scripts."""
