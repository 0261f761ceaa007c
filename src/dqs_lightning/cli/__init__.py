"""The command line: `dqs-fit`, `dqs-eval`, `dqs-export` and `dqs-sweep`."""
