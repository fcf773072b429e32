"""From runs and models to scores: towers, VLMs, files of answers, comparisons."""
