"""The laboratory: every experiment one command, ``hfilter figure NAME``.

An experiment is a `Study`: the training runs it needs, what is measured on them, and a figure that
is drawn from the measured tables alone. Runs are kept by what they are, so that experiments share
them and an interrupted one goes on where it stopped.

- ``lab.runs``: `Law`, `Run`, and the `Workshop` that trains runs or finds them.
- ``lab.study``: `Study`, `Options`, and `perform`, which does one from beginning to end.
- ``lab.gallery``: all studies by name.
- one file per study: what it needs, measures and draws.
"""
