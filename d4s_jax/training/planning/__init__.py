"""What training or sampling would take on accelerators that aren't here: by compiler, by count."""
