"""The documentation: pages in Markdown, and the code that makes the generated ones."""
