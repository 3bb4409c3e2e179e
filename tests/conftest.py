"""What holds for every test: how Hypothesis searches.

The profile ``ci`` (environment variable HYPOTHESIS_PROFILE) is the same in every run; the default
searches anew each time. Neither has a deadline: no test of this project judges wall-clock time.
"""

from __future__ import annotations

import os

from hypothesis import settings

settings.register_profile("default", deadline=None, print_blob=True)
settings.register_profile("ci", deadline=None, print_blob=True, derandomize=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))
