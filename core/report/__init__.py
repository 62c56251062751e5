"""Experiments as one HTML file."""
