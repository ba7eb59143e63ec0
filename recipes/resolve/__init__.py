"""What a recipe means on this machine; nothing is started here, and no weight is loaded.

``resolved`` puts it together: ``methods`` (who acts, who grades), ``teachers``, ``sources`` and ``stages`` (what each
model is made from, in which order), ``placement`` (devices, dtypes, nodes). Beside it: ``checkpoints`` and
``weights`` on disk, ``run_folder``, ``environment``. A method is a row of
``methods.METHODS``; another thing that a recipe means is a field of ``Resolved``, worked out in the file of its
subject.
"""
