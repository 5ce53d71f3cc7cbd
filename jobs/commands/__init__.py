"""What the command line is made of: options that commands share, and the commands that follow from signatures."""
