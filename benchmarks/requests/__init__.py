"""Deletion requests under stress."""
