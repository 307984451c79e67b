"""The agent: the one writer of this machine. It owns every homeserver's folder and processes. Imports no Django."""
