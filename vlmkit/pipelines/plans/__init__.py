"""What a run would be, before it starts: parameters, memory, FLOPs, time."""
