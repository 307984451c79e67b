"""What an owner takes along of a backup, in open formats: all of it, one room's files, some tables."""
