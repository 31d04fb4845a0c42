"""A running node's local control socket: `server` in the node, `client` in `stoq status`, `block`, `capture`.

place.py     where sockets lie, who may reach them, what is left of dead nodes
protocol.py  requests and answers, one JSON object a line
snapshot.py  a datapath's figures as an answer
stream.py    the binary records of a capture
keylog.py    TLS secrets, kept only when the operator allowed it
"""
