"""What the scripts of this folder share: servers and their clients, rounds in turn, tables, the machine."""
