"""``wgpy report``: what a node's history proves to an auditor, signed.

From the floor up: :mod:`.evidence` reads the lines of a history and :mod:`.timeline` says what they prove of a period, gaps
included; :mod:`.requirements` has the paragraphs, and :mod:`.model` makes of both the statement; :mod:`.signing` signs and checks
it; :mod:`.layout` is what a reader sees, :mod:`.render_html` and :mod:`.render_pdf` draw it, :mod:`.command` is the command line.
"""
