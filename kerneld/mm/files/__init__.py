"""Files that can be mapped: their pages in the page cache."""
