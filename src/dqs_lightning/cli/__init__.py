"""The command line: `dqs-fit`, `dqs-eval`, `dqs-export`, `dqs-sweep` and `dqs-report`."""
