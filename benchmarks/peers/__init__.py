"""Other durable execution libraries, each in a process of its own, used as their documentation says."""
