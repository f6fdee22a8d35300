"""Timing rnnfast beside other implementations; see README.md."""
