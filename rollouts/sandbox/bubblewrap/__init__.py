"""The second kind of sandbox: any Python, in a bubblewrap of its own; the verdict is made elsewhere, as always.

box.py stands outside: it says what a machine lacks, and starts bubblewrap over server.py. That serves inside: it forks
each program into namespaces, a temporary folder and limits of its own, where program.py executes it. The tests' process
stays in the locked interpreter of rollouts/sandbox/child.py, and talks with the program's over two pipes. A thing more
that programs may see is a bind in box.py, and a test that nothing of the user is seen by it.
"""
