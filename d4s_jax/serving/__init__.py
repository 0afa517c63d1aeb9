"""Generation over HTTP: jobs in a bounded queue, their progress, their results. See README.md."""
