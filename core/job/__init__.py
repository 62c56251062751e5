"""One run of main.py: batches, what is written, and what happens when something goes wrong."""
