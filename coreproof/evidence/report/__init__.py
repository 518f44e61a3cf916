"""A build's evidence for people and for CI: one HTML page, Markdown, JUnit XML."""
