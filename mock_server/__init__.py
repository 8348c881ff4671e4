"""Mock server: a frozen vision transformer behind HTTP, for reproducible end-to-end tests.

Start it with ``python -m mock_server`` (``--help`` lists the options), or build the application in
process with `mock_server.app.create_app`. The package shares no code with ``pgn_client``: a bug in
shared code could cancel itself out in the tests.
"""
