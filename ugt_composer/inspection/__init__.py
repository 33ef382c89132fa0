"""What a file or folder of a run is, and what is in it: facts that JSON can hold."""
