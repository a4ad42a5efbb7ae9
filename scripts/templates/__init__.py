"""What `kfloop new component` copies: a component that runs, to be changed."""
