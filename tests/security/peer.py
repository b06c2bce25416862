"""A client of its own process and user. It knows nothing of the project: sockets, and orders on standard input.

    python -I -S peer.py UID PATH

Each order is a line of JSON {"frames": [HEX…], "from": PATH or "", "to": PATH or ""}; the answer is a line with a
list of packets in hex, "" for each that was answered by the end of the connection.
"""

import json
import os
import socket
import sys


def talk(path: str, order: dict[str, object]) -> list[str]:
    answers: list[str] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.settimeout(60.0)
        try:
            if order.get("from"):
                connection.bind(str(order["from"]))
            connection.connect(str(order.get("to") or path))
        except OSError as error:
            return [f"not connected: {error.strerror}"]
        for frame in order["frames"]:  # type: ignore[attr-defined]
            try:
                connection.send(bytes.fromhex(frame))
                answers.append(connection.recv(1 << 16).hex())
            except (BrokenPipeError, ConnectionResetError):
                answers.append("")
    return answers


def main() -> None:
    uid, path = int(sys.argv[1]), sys.argv[2]
    if uid != os.geteuid():
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    print(json.dumps([os.getpid(), os.geteuid()]), flush=True)
    for line in sys.stdin:
        print(json.dumps(talk(path, json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
