"""Media files: found every five minutes, kept once whatever they are called, told by an index. Imports no Django."""
