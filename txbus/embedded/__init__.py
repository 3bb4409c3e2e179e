"""The embedded broker: a durable broker for one machine in one SQLite file.

`plugin` is found through the entry point; nothing here imports sqlite3 before a backend is made.
"""

__all__: list[str] = []
