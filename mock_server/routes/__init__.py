"""The wire formats: one file each, all answered by `mock_server.service.Service`."""
