"""What the pages say: code that runs, tables and figures that are true, links that lead somewhere."""
