"""The `editkit` command: one thin click command per file over the public names. Installed as `editkit_cli`."""
