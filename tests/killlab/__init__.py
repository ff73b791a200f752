"""The kill lab: a server under load, processes that are killed, and a verdict on what its clients saw.

`python -m tests.killlab --help` says how to use it. Data flows one way: `options` (the command line) → `lab` (the
experiment; `mix` is the load, `kills` are the kills) → `measure` (figures) → `report` (for the terminal, and a page).
Clients, recorder and checker are those of the specifications (`tests.support`).
"""
