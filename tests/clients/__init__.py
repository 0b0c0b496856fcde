"""Today's clients, as they are published, against real processes: `make test-clients`.

They are installed into an environment of their own, because what they need is no part of ours; so these tests are run
by that target alone, and `norecursedirs` of pyproject.toml keeps pytest out of here otherwise.
"""
