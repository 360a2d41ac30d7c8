"""Real workers, real servers and real faults for tests; what happened is read from tables and a ledger."""
