"""How a program of this project starts: command line, processes of a job, signals, locks and run directories."""
