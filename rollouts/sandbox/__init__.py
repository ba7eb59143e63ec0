"""The sandbox: programs and formulas that a model wrote are run in processes of their own, which can do no harm.

run.py starts a server, child.py, which locks itself in (lock.py) and forks a process for each job. A program
(program.py) and its tests (judge.py) are two, which talk (peer.py) about plain values (plain.py) and objects that stay
where they are (remote.py). rules.py says which Python may be written, namespaces.py and safe_stdlib.py what its names
mean; formulas.py compares formulas. bubblewrap/ is the second kind, where programs may use any Python. A module more
for programs is a row in rules.py, and a test that breaks out by it.
"""
