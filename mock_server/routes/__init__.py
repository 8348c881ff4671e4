"""The wire formats, one file each; all of them use `mock_server.service.Service`."""
