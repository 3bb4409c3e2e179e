"""A small broker for one machine: a directory with one journal that every client replays."""
