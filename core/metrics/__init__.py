"""The numbers of the papers on result trees: one file for each metric, the protocol that runs them, its report."""
