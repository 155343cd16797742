"""The `editkit` command: one thin click command per file over the public names of `editkit`. Installed as `editkit_cli`."""
