"""An app on the shortcut, and its server: one system call after the other, as an app makes them.

Run with the name of a scenario and the server's address. Prints how many bytes the app sent from when its first message
was answered: from then on they may take the shortcut."""

import array, errno, fcntl, hashlib, os, random, select, signal, socket, struct, sys, tempfile, termios, threading, time

ADDRESS = sys.argv[2]
PATIENCE = 20
TCP_NODELAY, TCP_CORK, TCP_ULP = 1, 3, 31
SO_RCVLOWAT, SO_RCVTIMEO, SO_SNDTIMEO, SO_ZEROCOPY = 18, 20, 21, 60
IPPROTO_MPTCP, MSG_ZEROCOPY, MSG_FASTOPEN = 262, 0x4000000, 0x20000000


class Flow:
    """Both ends of a connection. `app` may use the shortcut as soon as this returns."""

    def __init__(self, prepare=lambda app: None, protocol=0, warm=True):
        listener = socket.create_server((ADDRESS, 0))
        self.app = socket.socket(proto=protocol)
        # Which makes it O_NONBLOCK, and every call poll first.
        self.app.settimeout(PATIENCE)
        prepare(self.app)
        self.app.connect(listener.getsockname())
        self.server, _ = listener.accept()
        self.server.settimeout(PATIENCE)
        listener.close()
        if warm:
            # Goes through the relay, unless that is ready already.
            self.app.send(b"warm up")
            assert self.server.recv(100) == b"warm up"
            self.server.send(b"warm")
            assert self.app.recv(100) == b"warm"


def exactly(end, length):
    """Receives so many bytes."""
    received = bytearray()
    while len(received) < length:
        part = end.recv(length - len(received))
        assert part, f"end after {len(received)} of {length}"
        received += part
    return bytes(received)


def everything(end):
    received = bytearray()
    while part := end.recv(1 << 16):
        received += part
    return bytes(received)


def fails(number, call, *arguments):
    try:
        result = call(*arguments)
    except OSError as error:
        assert error.errno == number, f"{error} instead of {errno.errorcode[number]}"
    else:
        raise AssertionError(f"{result!r} instead of {errno.errorcode[number]}")


def refused(numbers, call, *arguments):
    try:
        call(*arguments)
    except OSError as error:
        assert error.errno in numbers, error
        return
    raise AssertionError("went well")


def within(check, what):
    deadline = time.monotonic() + PATIENCE
    while not check():
        assert time.monotonic() < deadline, what
        time.sleep(0.001)


def reset_on_close(end):
    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def payload(length, seed=1):
    return random.Random(seed).randbytes(length)


def half_close():
    flow = Flow()
    flow.app.sendall(b"question")
    flow.app.shutdown(socket.SHUT_WR)
    assert everything(flow.server) == b"question"
    flow.server.sendall(b"answer")
    flow.server.close()
    assert everything(flow.app) == b"answer"
    return 8


def server_half_closes_first():
    flow = Flow()
    flow.server.shutdown(socket.SHUT_WR)
    assert flow.app.recv(10) == b""
    flow.app.sendall(b"still here")
    assert exactly(flow.server, 10) == b"still here"
    flow.app.close()
    assert flow.server.recv(10) == b""
    return 10


def send_after_the_end():
    flow = Flow()
    flow.app.shutdown(socket.SHUT_WR)
    fails(errno.EPIPE, flow.app.send, b"late")
    assert everything(flow.server) == b""
    return 0


def app_resets():
    flow = Flow()
    flow.app.sendall(b"last words")
    assert exactly(flow.server, 10) == b"last words"
    reset_on_close(flow.app)
    flow.app.close()
    fails(errno.ECONNRESET, flow.server.recv, 10)
    return 10


def server_resets():
    flow = Flow()
    flow.app.sendall(b"x")
    assert exactly(flow.server, 1) == b"x"
    reset_on_close(flow.server)
    flow.server.close()
    poll = select.poll()
    poll.register(flow.app, select.POLLIN)
    assert poll.poll(PATIENCE * 1000)
    fails(errno.ECONNRESET, flow.app.recv, 10)
    fails(errno.EPIPE, flow.app.send, b"y")
    return 1


def close_with_unread_bytes():
    flow = Flow()
    flow.app.sendall(b"x")
    flow.server.sendall(b"never read")
    select.select([flow.app], [], [], PATIENCE)
    flow.app.close()
    assert exactly(flow.server, 1) == b"x"
    fails(errno.ECONNRESET, flow.server.recv, 10)
    return 1


def owner_exits():
    flow = Flow()
    child = os.fork()
    if child == 0:
        flow.app.sendall(payload(100_000))
        os._exit(0)
    flow.app.close()
    os.waitpid(child, 0)
    assert everything(flow.server) == payload(100_000)
    return 100_000


def owner_is_killed():
    flow = Flow()
    child = os.fork()
    if child == 0:
        flow.app.sendall(b"before")
        time.sleep(PATIENCE)
    flow.app.close()
    assert exactly(flow.server, 6) == b"before"
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert flow.server.recv(10) == b""
    return 6


def waiting_and_peeking():
    flow = Flow()
    flow.server.sendall(b"abcd")
    poll = select.poll()
    poll.register(flow.app, select.POLLIN | select.POLLOUT)
    within(lambda: poll.poll(0)[0][1] == select.POLLIN | select.POLLOUT, "not readable")
    assert flow.app.recv(10, socket.MSG_PEEK) == b"abcd"
    assert flow.app.recv(2) == b"ab"
    assert poll.poll(0)[0][1] & select.POLLIN
    assert flow.app.recv(2) == b"cd"
    assert poll.poll(0)[0][1] == select.POLLOUT
    flow.app.sendall(b"x")
    assert exactly(flow.server, 1) == b"x"
    return 1


def edges():
    flow = Flow()
    epoll = select.epoll()
    flow.app.setblocking(False)
    epoll.register(flow.app, select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET)
    for number in range(100):
        flow.app.sendall(b"%04d" % number)
        flow.server.sendall(exactly(flow.server, 4))
        assert epoll.poll(PATIENCE) == [(flow.app.fileno(), select.EPOLLIN)]
        assert flow.app.recv(10) == b"%04d" % number
        fails(errno.EAGAIN, flow.app.recv, 10)
        assert epoll.poll(0) == []
    flow.server.close()
    assert epoll.poll(PATIENCE)[0][1] & select.EPOLLRDHUP
    return 400


def waitall():
    """Of a blocking socket, which is what `settimeout(None)` makes of it."""
    flow = Flow(lambda app: app.settimeout(None))
    flow.app.sendall(b"x")
    threading.Timer(0.05, flow.server.send, [b"12"]).start()
    threading.Timer(0.10, flow.server.send, [b"34"]).start()
    assert flow.app.recv(4, socket.MSG_WAITALL) == b"1234"
    return 1


def low_water_mark():
    flow = Flow()
    flow.app.sendall(b"x")
    flow.app.setsockopt(socket.SOL_SOCKET, SO_RCVLOWAT, 4)
    flow.server.send(b"12")
    assert select.select([flow.app], [], [], 0.1)[0] == []
    flow.server.send(b"34")
    assert select.select([flow.app], [], [], PATIENCE)[0]
    assert flow.app.recv(10) == b"1234"
    return 1


def timeouts():
    """As the kernel has them, for a blocking socket."""
    flow = Flow(lambda app: app.settimeout(None))
    short = struct.pack("ll", 0, 200_000)
    flow.app.setsockopt(socket.SOL_SOCKET, SO_RCVTIMEO, short)
    flow.app.setsockopt(socket.SOL_SOCKET, SO_SNDTIMEO, short)
    begun = time.monotonic()
    fails(errno.EAGAIN, flow.app.recv, 10)
    assert 0.15 < time.monotonic() - begun < 5
    sent, chunk = 0, payload(1 << 20)
    try:
        while sent < 1 << 30:
            sent += flow.app.send(chunk)
    except BlockingIOError:
        pass
    assert sent < 1 << 30, "nothing made the app wait"
    flow.app.setsockopt(socket.SOL_SOCKET, SO_SNDTIMEO, struct.pack("ll", 0, 0))
    received = 0
    while received < sent:
        received += len(flow.server.recv(1 << 20))
    assert received == sent
    return None


def slow_server(wait):
    """Never EAGAIN without a wake-up, and no byte lost, when the server reads slowly."""
    flow = Flow()
    total, digest = 48 << 20, hashlib.sha256()

    def serve():
        left = total
        while left:
            part = flow.server.recv(min(left, 1 << 18))
            assert part
            digest.update(part)
            left -= len(part)
            if random.random() < 0.05:
                time.sleep(0.005)

    reader = threading.Thread(target=serve)
    flow.app.setblocking(False)
    bytes_, sent = memoryview(payload(total)), 0
    await_writable = wait(flow.app)
    blocked = 0
    while sent < total:
        try:
            sent += flow.app.send(bytes_[sent : sent + random.choice([100, 5_000, 70_000, 900_000])])
        except BlockingIOError:
            blocked += 1
            if blocked == 1:
                reader.start()
            assert await_writable(), f"no wake-up at {sent}"
    assert blocked, "the server was not slow enough"
    reader.join()
    assert digest.digest() == hashlib.sha256(bytes_).digest()
    return None


def slow_server_by_level():
    return slow_server(lambda app: lambda: select.select([], [app], [], PATIENCE)[1])


def slow_server_by_edge():
    def wait(app):
        epoll = select.epoll()
        epoll.register(app, select.EPOLLOUT | select.EPOLLET)
        epoll.poll(0)
        return lambda: epoll.poll(PATIENCE)

    return slow_server(wait)


def upload():
    """A stream leaves the shortcut, and afterwards nothing of it is left on the app's socket."""
    flow = Flow()
    bytes_ = payload(64 << 20)
    sender = threading.Thread(target=lambda: (flow.app.sendall(bytes_), flow.app.shutdown(socket.SHUT_WR)))
    time.sleep(0.1)
    sender.start()
    # Not at once, so that the upstream socket fills up.
    time.sleep(0.5)
    digest = hashlib.sha256()
    while part := flow.server.recv(1 << 20):
        digest.update(part)
    assert digest.digest() == hashlib.sha256(bytes_).digest()
    sender.join()
    flow.server.sendall(b"done!")
    within(lambda: waiting(flow.app) == 5, "FIONREAD")
    return None


def waiting(end):
    count = array.array("i", [0])
    fcntl.ioctl(end, termios.FIONREAD, count)
    return count[0]


def small_pieces():
    flow = Flow()
    bytes_ = payload(4 << 20)
    view = memoryview(bytes_)
    sender = threading.Thread(
        target=lambda: ([flow.app.sendall(view[at : at + 512]) for at in range(0, len(bytes_), 512)], flow.app.shutdown(1))
    )
    sender.start()
    assert everything(flow.server) == bytes_
    sender.join()
    return None


def bytes_waiting():
    flow = Flow()
    flow.server.sendall(b"reply")
    select.select([flow.app], [], [], PATIENCE)
    within(lambda: waiting(flow.app) == 5, "FIONREAD")
    assert flow.app.recv(10) == b"reply"
    assert waiting(flow.app) == 0
    return None


def when(end, event, call):
    """Makes a call of a socket that does not block, as soon as that is possible."""
    poll = select.poll()
    poll.register(end, event)
    while True:
        try:
            return call()
        except BlockingIOError:
            assert poll.poll(PATIENCE * 1000), "no wake-up"


def files():
    flow = Flow()
    bytes_ = payload(300_000)
    with tempfile.TemporaryFile() as file:
        file.write(bytes_)
        file.flush()
        done = threading.Thread(target=lambda: received.append(exactly(flow.server, 2 * len(bytes_))))
        received = []
        done.start()
        offset = 0
        while offset < len(bytes_):
            send = lambda: os.sendfile(flow.app.fileno(), file.fileno(), offset, len(bytes_) - offset)
            offset += when(flow.app, select.POLLOUT, send)
        read, write = os.pipe()
        offset = 0
        while offset < len(bytes_):
            part = os.splice(file.fileno(), write, 60_000, offset_src=offset)
            offset += part
            while part:
                part -= when(flow.app, select.POLLOUT, lambda: os.splice(read, flow.app.fileno(), part))
        done.join()
    assert received == [bytes_ + bytes_]
    flow.server.sendall(bytes_[:50_000])
    got = b""
    while len(got) < 50_000:
        spliced = when(flow.app, select.POLLIN, lambda: os.splice(flow.app.fileno(), write, 50_000))
        got += os.read(read, spliced)
    assert got == bytes_[:50_000]
    return 600_000


def vectors_and_nothing():
    flow = Flow()
    assert flow.app.send(b"") == 0
    assert flow.app.sendmsg([b"one", b"", b"two", payload(100_000)]) > 6
    assert exactly(flow.server, 6) == b"onetwo"
    assert exactly(flow.server, 100_000) == payload(100_000)
    return 100_006


def held_back():
    flow = Flow()
    flow.app.send(b"more", socket.MSG_MORE)
    flow.app.send(b"now")
    assert exactly(flow.server, 7) == b"morenow"
    flow.app.setsockopt(socket.IPPROTO_TCP, TCP_CORK, 1)
    flow.app.send(b"corked")
    flow.app.setsockopt(socket.IPPROTO_TCP, TCP_CORK, 0)
    assert exactly(flow.server, 6) == b"corked"
    flow.app.send(b"last", socket.MSG_MORE)
    flow.app.shutdown(socket.SHUT_WR)
    assert everything(flow.server) == b"last"
    return 17


def urgent():
    """What takes the shortcut stays urgent; the relay makes it an ordinary byte, in its place."""
    flow = Flow()
    flow.app.send(b"ab")
    flow.app.send(b"!", socket.MSG_OOB)
    flow.app.send(b"cd")
    poll = select.poll()
    poll.register(flow.server, select.POLLPRI)
    within(lambda: poll.poll(0) or waiting(flow.server) == 5, "not arrived")
    if poll.poll(0):
        assert flow.server.recv(1, socket.MSG_OOB) == b"!"
        assert exactly(flow.server, 4) == b"abcd"
    else:
        assert exactly(flow.server, 5) == b"ab!cd"
    return 5


def shared():
    """A dup, a child and another process, which got it by SCM_RIGHTS, use one socket in turn."""
    flow = Flow()
    flow.app.send(b"1")
    copy = flow.app.dup()
    copy.send(b"2")
    child = os.fork()
    if child == 0:
        flow.app.send(b"3")
        os._exit(0)
    os.waitpid(child, 0)
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:
        flow.app.close()
        copy.close()
        _, (fd,), _, _ = socket.recv_fds(theirs, 10, 1)
        socket.socket(fileno=fd).send(b"4")
        os._exit(0)
    socket.send_fds(ours, [b"x"], [flow.app.fileno()])
    os.waitpid(child, 0)
    flow.app.close()
    copy.send(b"5")
    assert exactly(flow.server, 5) == b"12345"
    copy.close()
    return 5


def threads():
    flow = Flow()
    each, count = 2000, 4

    def send(who):
        for number in range(each):
            flow.app.sendall(b"%02d:%06d;" % (who, number) * 8)

    running = [threading.Thread(target=send, args=[who]) for who in range(count)]
    for thread in running:
        thread.start()
    following = [0] * count
    for _ in range(each * count):
        message = exactly(flow.server, 80)
        assert message == message[:10] * 8, message
        who, number = int(message[:2]), int(message[3:9])
        assert number == following[who]
        following[who] += 1
    for thread in running:
        thread.join()
    return None


def dialogue():
    """Requests of every size, some behind each other, some answered, at random."""
    flow = Flow()
    source = random.Random(7)
    sizes = [source.choice([1, 2, 63, 64, 1000, 4096, 16_384, 65_536, 200_000]) for _ in range(1500)]
    bytes_ = payload(sum(sizes))

    def serve():
        at = 0
        for size in sizes:
            part = exactly(flow.server, size)
            assert part == bytes_[at : at + size], f"wrong within {at}+{size}"
            at += size
            flow.server.sendall(hashlib.sha256(part).digest())

    server = threading.Thread(target=serve)
    server.start()
    at, open_ = 0, []
    for size in sizes:
        flow.app.sendall(bytes_[at : at + size])
        open_.append(hashlib.sha256(bytes_[at : at + size]).digest())
        at += size
        if len(open_) >= source.choice([1, 1, 1, 2, 5]):
            for digest in open_:
                assert exactly(flow.app, 32) == digest
            open_ = []
    for digest in open_:
        assert exactly(flow.app, 32) == digest
    server.join()
    return None


def completions(app):
    """The calls that the kernel says it has completed."""
    app.setblocking(False)
    completed = []
    while True:
        try:
            _, control, _, _ = app.recvmsg(1, 200, socket.MSG_ERRQUEUE | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return completed
        first, last = struct.unpack("=8xII", control[0][2][:16])
        completed += range(first, last + 1)


def zerocopy():
    flow = Flow(lambda app: app.setsockopt(socket.SOL_SOCKET, SO_ZEROCOPY, 1))
    for _ in range(3):
        flow.app.settimeout(PATIENCE)
        assert flow.app.send(payload(100_000), MSG_ZEROCOPY) == 100_000
        exactly(flow.server, 100_000)
    completed = []
    within(lambda: completed.extend(completions(flow.app)) or len(completed) >= 3, "completions")
    assert completed == [0, 1, 2], completed
    return None


def mptcp():
    flow = Flow(protocol=IPPROTO_MPTCP)
    flow.app.sendall(b"x")
    assert exactly(flow.server, 1) == b"x"
    return None


def fast_open():
    """The second connection to an address has the cookie that the first one asked for."""
    listener = socket.create_server((ADDRESS, 0))
    for _ in range(2):
        app = socket.socket()
        app.settimeout(PATIENCE)
        try:
            sent = app.sendto(b"first", MSG_FASTOPEN, listener.getsockname())
        except BlockingIOError as error:
            assert error.errno == errno.EINPROGRESS
            sent = 0
        server, _ = listener.accept()
        app.sendall(b"first"[sent:])
        assert exactly(server, 5) == b"first"
        server.send(b"answer")
        assert exactly(app, 6) == b"answer"
        app.sendall(b"second")
        assert exactly(server, 6) == b"second"
    return 6


def turns_blocking():
    """A socket that no longer suits the shortcut goes on by the relay, and as any other."""
    flow = Flow()
    flow.app.sendall(b"before")
    flow.app.settimeout(None)
    flow.app.sendall(b"after")
    assert exactly(flow.server, 11) == b"beforeafter"
    flow.server.send(b"reply")
    assert exactly(flow.app, 5) == b"reply"
    return 6


def interrupted():
    """A signal handler does not end a blocking call of a socket that culvert left alone."""
    flow = Flow(lambda app: app.settimeout(None))
    signal.signal(signal.SIGUSR1, lambda *_: None)
    signal.siginterrupt(signal.SIGUSR1, False)
    threading.Timer(0.1, os.kill, [os.getpid(), signal.SIGUSR1]).start()
    threading.Timer(0.3, flow.server.send, [b"late"]).start()
    assert flow.app.recv(10) == b"late"
    return None


def reconnect():
    """A socket that is used again is another connection."""
    flow = Flow()
    flow.app.sendall(b"first")
    assert exactly(flow.server, 5) == b"first"
    libc = __import__("ctypes").CDLL(None)
    assert libc.connect(flow.app.fileno(), struct.pack("H14x", socket.AF_UNSPEC), 16) == 0
    listener = socket.create_server((ADDRESS, 0))
    flow.app.connect(listener.getsockname())
    server, _ = listener.accept()
    flow.app.sendall(b"warm up")
    assert exactly(server, 7) == b"warm up"
    server.send(b"warm")
    assert exactly(flow.app, 4) == b"warm"
    flow.app.sendall(b"second")
    assert exactly(server, 6) == b"second"
    return None


def one_way():
    """Nothing but messages past the relay, for longer than a silent connection may last."""
    flow = Flow()
    for _ in range(10):
        flow.app.sendall(b"x")
        assert exactly(flow.server, 1) == b"x"
        time.sleep(0.2)
    flow.server.send(b"done")
    assert exactly(flow.app, 4) == b"done"
    return 10


def many():
    flows = [Flow() for _ in range(1000)]
    for length in (1, 64, 3000):
        for number, flow in enumerate(flows):
            flow.app.sendall(payload(length, number))
        for number, flow in enumerate(flows):
            assert exactly(flow.server, length) == payload(length, number)
            flow.server.sendall(payload(length, number + 1))
        for number, flow in enumerate(flows):
            assert exactly(flow.app, length) == payload(length, number + 1)
    return None


def pause():
    """What the app sends does not wait for the relay, which the test stops between two lines of input."""
    flow = Flow()
    print("ready", flush=True)
    sys.stdin.readline()
    flow.app.sendall(b"while stopped")
    assert exactly(flow.server, 13) == b"while stopped"
    flow.server.sendall(b"reply")
    print("stopped", flush=True)
    sys.stdin.readline()
    assert exactly(flow.app, 5) == b"reply"
    return 13


def crash():
    """The relay is killed between two lines of input."""
    flow = Flow()
    flow.app.sendall(b"before")
    assert exactly(flow.server, 6) == b"before"
    print("ready", flush=True)
    sys.stdin.readline()
    poll = select.poll()
    poll.register(flow.app, select.POLLIN)
    assert poll.poll(PATIENCE * 1000)
    fails(errno.ECONNRESET, flow.app.recv, 10)
    refused([errno.EPIPE, errno.ECONNRESET], flow.app.send, b"x")
    fails(errno.ECONNRESET, flow.server.recv, 10)
    return None
