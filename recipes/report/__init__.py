"""One run's folder, finished or under way, as report.html, as a table for the console, and as rows for a notebook.

``records`` holds dataclasses of what the folder's files say, and reads files of any version; ``data`` reads the whole
folder (:func:`~mopd.recipes.report.data.load_run`); ``scores`` and ``run`` make the page's sections, ``charts`` their
SVG, ``wording`` the verdict and how numbers are written; ``page`` puts them into the template; ``card`` is the model
card of the exported student. A new section is a
function of ``RunData`` in ``scores`` or ``run`` that returns rows of text, a line in ``page``, and its place in
templates/report.html.j2.
"""
