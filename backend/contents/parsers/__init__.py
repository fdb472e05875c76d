"""The code that opens documents of strangers: it runs only in a child process that is limited and expendable."""
