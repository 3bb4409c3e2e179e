"""The databases of a run: real SQLite behind SQLAlchemy, with points where a process can crash.

A file for each database in WAL mode, copied from one whose schema was made once. What a transaction
has not committed dies with its process; what it has survives. Locks are waited for in virtual time.
"""

from txbus_sim._database._databases import Databases, SimDatabase
from txbus_sim._database._interposed import interposed

__all__ = ["Databases", "SimDatabase", "interposed"]
