"""Many runs of one command: sweeps of VLMs, studies of pretraining, on this machine or on Slurm."""
