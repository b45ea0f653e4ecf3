"""What several tests need: snapshots, threads, the Hub's server, the command: no tests."""
