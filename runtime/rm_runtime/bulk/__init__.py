"""Files and folders of requests answered file by file, so that a run that was killed goes on where it stood."""
