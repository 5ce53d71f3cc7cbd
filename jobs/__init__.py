"""Where units run: plan, worker, in-process engine, Ray engine, progress, the command line."""
