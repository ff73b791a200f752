"""The bench: how fast the server is, beside a bare hello-world of the same stack, and beside its peers.

`./tests/bench/run.sh --help` says how to use it. Data flows one way: `options` (the command line) → `plan` (what is
measured, in which order) → `rounds` (measures it, on `targets`, with `generators`; `sync` and `logd_alone` are
probes) → `figures` (medians, spread, ratios) → `report` (JSON, Markdown, a page) with `plots`.

Every figure is compared only with figures of the same round, taken within seconds of it: machines that are shared get
faster and slower by the minute, and a ratio of neighbours hardly notices.
"""
