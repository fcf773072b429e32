"""Sources, samples, batches: everything between files on disk and the trainer."""
