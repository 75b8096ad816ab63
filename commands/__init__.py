"""The bodies of the commands, one file each; ``cli.py`` declares them."""
