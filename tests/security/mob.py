"""Many clients of one user, each of which comes again when it was turned away.

    python -I -S mob.py UID PATH COUNT

It says "here" when all have been at the door once, and ends with its standard input; then it says how often one came.
"""

import os
import resource
import select
import socket
import sys


def main() -> None:
    uid, path, count = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if uid != os.geteuid():
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    poll = select.poll()
    poll.register(sys.stdin, select.POLLIN | select.POLLHUP)
    attempts, told = 0, False
    by_number: dict[int, socket.socket] = {}
    while True:
        while len(by_number) < count:
            one = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            one.setblocking(False)
            try:
                one.connect(path)
            except OSError:  # the queue at the door is full
                one.close()
                break
            attempts += 1
            by_number[one.fileno()] = one
            poll.register(one, select.POLLIN | select.POLLHUP)
        if not told and attempts >= count:
            print("here", flush=True)
            told = True
        for number, _ in poll.poll(20):
            if number == sys.stdin.fileno():
                print(attempts, flush=True)
                return
            poll.unregister(number)
            by_number.pop(number).close()


if __name__ == "__main__":
    main()
