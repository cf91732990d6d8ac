"""The files that stand alone: what is in them, where they come from, how they are written."""
