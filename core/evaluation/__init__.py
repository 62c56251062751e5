"""The metrics on result trees: features, measures, the whole protocol, and its table."""
