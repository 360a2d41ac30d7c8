"""A soak: everything at once for as long as one likes, under every fault; then the tables have to add up.

    cd tests && python -m soaking --minutes 15

Two worker processes on a Redis and a Postgres of the soak's own. See CONTRIBUTING.
"""
