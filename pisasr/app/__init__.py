"""A local page on which the two strengths are set by hand; pipeline and files are the package's."""
