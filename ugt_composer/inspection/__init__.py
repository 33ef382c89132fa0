"""Reports the kind and the content of a file or folder of a run, as facts that can be written as JSON."""
