"""The composition points: recipe in, run directory out. Everything a command does can be called from here."""
