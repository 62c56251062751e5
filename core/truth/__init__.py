"""The truth benchmark (docs/truth.md)."""
