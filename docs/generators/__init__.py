"""Pages and drawings that `make docs` makes from the code, so that they cannot disagree with it.

A page of `docs/` may hold these lines, each alone at the start of its line:

    <!-- generated: NAME -->    the generated part NAME: see FRAGMENTS in hooks.py
    <!-- diagram: FILE.svg -->  docs/diagrams/FILE.svg, inline, so that currentColor follows the color scheme
    <!-- run -->                before a fenced block: tests/docs/test_blocks.py runs it as printed
    <!-- file: NAME -->         before a fenced block: the same test writes it to NAME
"""
