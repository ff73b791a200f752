"""Commands for a person, on the data of a server: look at it, verify, repair, move it in and out.

`commands` has the table of them; each has a module of its own. They read files with the decoders of the server itself,
so what they show is what it would do. Only `repair --yes` and `import` change a directory, and `repair` keeps what it
cuts off in files of its own. What all of them need of the outside world is in `directory` and `streams`. They know
nothing of sockets.
"""
