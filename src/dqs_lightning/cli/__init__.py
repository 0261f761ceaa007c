"""The command line: `dqs-fit` and `dqs-eval`."""
