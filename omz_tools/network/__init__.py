"""One GET on the wire, whatever lies between here and the server."""
