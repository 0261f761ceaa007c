"""Files that are whole at any time and run no code: checkpoints and the components in them."""
