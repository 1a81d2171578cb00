"""The process that opens models: confined first, one for each job. The daemon knows it only as a command to start."""
