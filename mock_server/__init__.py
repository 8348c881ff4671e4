"""A frozen vision transformer behind HTTP, for reproducible end-to-end tests.

Start it with ``python -m mock_server`` (``--help`` lists the switches), or build the application in
process with `mock_server.app.create_app`. It shares no code with ``pgn_client``: one bug must not
cancel itself out.
"""
