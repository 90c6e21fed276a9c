

# What follows is for replies that go straight into the app's receive queue.


def answered(flow, request, answer):
    """One exchange."""
    flow.app.sendall(request)
    assert exactly(flow.server, len(request)) == request
    flow.server.sendall(answer)
    assert exactly(flow.app, len(answer)) == answer


def asked():
    """A connection whose server has got a request."""
    flow = Flow()
    flow.app.sendall(b"?")
    exactly(flow.server, 1)
    return flow


def exchanges():
    flow = Flow()
    for number in range(3000):
        answered(flow, b"request %06d" % number, payload(1 + number % 700, number))
    return 3000 * 14


def pipelined():
    """Many requests in one go, each answered by itself; the answers are read in parts of another size."""
    flow = Flow()
    for turn in range(50):
        flow.app.sendall(b"".join(b"request %06d" % number for number in range(40)))
        assert len(exactly(flow.server, 40 * 14)) == 40 * 14
        answers = [payload(1 + (turn * number) % 300, number) for number in range(40)]
        for answer in answers:
            flow.server.sendall(answer)
        everything_ = b"".join(answers)
        at = 0
        while at < len(everything_):
            part = flow.app.recv(1 + (turn * 37 + at) % 500)
            assert part == everything_[at : at + len(part)], f"wrong at {at} of turn {turn}"
            at += len(part)
    return None


def one_by_one():
    flow = Flow()
    bytes_ = payload(2000)
    flow.app.sendall(b"?")
    exactly(flow.server, 1)
    flow.server.sendall(bytes_)
    assert b"".join(exactly(flow.app, 1) for _ in bytes_) == bytes_
    return 1


def peeked():
    flow = Flow()
    for number in range(200):
        answer = payload(5 + number, number)
        flow.app.sendall(b"?")
        exactly(flow.server, 1)
        flow.server.sendall(answer)
        select.select([flow.app], [], [], PATIENCE)
        assert flow.app.recv(3, socket.MSG_PEEK) == answer[:3]
        within(lambda: flow.app.recv(1000, socket.MSG_PEEK) == answer, "peeked")
        assert exactly(flow.app, len(answer)) == answer
        flow.app.setblocking(False)
        fails(errno.EAGAIN, flow.app.recv, 1, socket.MSG_PEEK)
        flow.app.settimeout(PATIENCE)
    return None


def levels():
    """Level-triggered epoll, poll and select report an answer until all of it was read, and nothing afterwards."""
    flow = Flow()
    epoll, poll = select.epoll(), select.poll()
    epoll.register(flow.app, select.EPOLLIN)
    poll.register(flow.app, select.POLLIN)
    reports = [
        lambda patience: epoll.poll(patience),
        lambda patience: poll.poll(patience * 1000),
        lambda patience: select.select([flow.app], [], [], patience)[0],
    ]
    for number in range(300):
        report = reports[number % 3]
        flow.app.sendall(b"?")
        exactly(flow.server, 1)
        flow.server.sendall(b"%06d" % number)
        assert report(PATIENCE)
        exactly(flow.app, 3)
        assert report(PATIENCE)
        exactly(flow.app, 3)
        assert not report(0)
    return None


def answer_and_close():
    """Every byte comes before the end, also when the server is gone at once."""
    for number in range(200):
        flow = asked()
        answer = payload(1 + number * 13, number)
        flow.server.sendall(answer[: number * 7])
        flow.server.sendall(answer[number * 7 :])
        flow.server.close()
        if number % 4 == 0:
            time.sleep(0.01)
        assert everything(flow.app) == answer, f"not whole: {number}"
        flow.app.close()
    return None


def answer_and_close_to_a_sleeper():
    """An app that reads late finds everything, although the relay has nothing left to do."""
    flow = asked()
    flow.server.sendall(b"answer")
    flow.server.close()
    flow.app.shutdown(socket.SHUT_WR)
    time.sleep(1)
    assert everything(flow.app) == b"answer"
    return None


def answer_and_reset():
    """A reset overtakes no answer that was sent before it."""
    for number in range(50):
        flow = asked()
        flow.server.sendall(b"answer %03d" % number)
        time.sleep(0.02)
        reset_on_close(flow.server)
        flow.server.close()
        time.sleep(0.02 * (number % 2))
        assert exactly(flow.app, 10) == b"answer %03d" % number
        fails(errno.ECONNRESET, flow.app.recv, 10)
        flow.app.close()
    return None


def large_and_small():
    """Answers of every size in one or several parts; the app reads parts of another size, and sometimes late."""
    flow = Flow()
    source = random.Random(11)
    sizes = [source.choice([1, 64, 900, 9000, 16_383, 16_384, 40_000, 70_000, 300_000]) for _ in range(1200)]
    bytes_ = payload(sum(sizes), 5)

    def serve():
        at, choice = 0, random.Random(12)
        for size in sizes:
            exactly(flow.server, 1)
            end = at + size
            while at < end:
                part = min(end - at, choice.choice([1, 500, 20_000, 400_000]) if size < 50_000 else 400_000)
                flow.server.sendall(bytes_[at : at + part])
                at += part

    server = threading.Thread(target=serve)
    server.start()
    at = ahead = 0
    for turn, size in enumerate(sizes):
        if ahead == 0:
            ahead = min(source.choice([1, 1, 1, 4]), len(sizes) - turn)
            flow.app.sendall(b"?" * ahead)
        ahead -= 1
        if turn % 97 == 0:
            time.sleep(0.03)
        end = at + size
        while at < end:
            part = flow.app.recv(min(end - at, source.choice([1000, 65_536, 1 << 20])))
            assert part and part == bytes_[at : at + len(part)], f"wrong within {at}+{len(part)}"
            at += len(part)
    server.join()
    return None


def download():
    flow = Flow()
    bytes_ = payload(64 << 20)
    server = threading.Thread(target=lambda: (flow.server.sendall(bytes_), flow.server.shutdown(socket.SHUT_WR)))
    server.start()
    assert everything(flow.app) == bytes_
    server.join()
    return None


def slow_app():
    """A server that only talks has to wait for an app that does not read, as with any connection."""
    flow = Flow()
    bytes_ = payload(1000)
    flow.server.setblocking(False)
    sent = 0
    while sent < 256 << 20:
        try:
            sent += flow.server.send(bytes_[sent % 1000 :])
        except BlockingIOError:
            if not select.select([], [flow.server], [], 1)[1]:
                break
    assert sent < 64 << 20, f"{sent} bytes found room"
    reader = random.Random(3)
    at = 0
    while at < sent:
        part = flow.app.recv(min(sent - at, reader.choice([700, 100_000])))
        expected = (bytes_ * (len(part) // 1000 + 2))[at % 1000 :][: len(part)]
        assert part == expected, f"wrong at {at}"
        at += len(part)
    answered(flow, b"request", b"answer")
    return None


def asks_and_never_reads():
    """Requests do not renew the room for answers that nobody reads."""
    flow = Flow()
    answer = payload(1000)
    flow.app.setblocking(False)
    flow.server.setblocking(False)
    sent = at = 0
    for _ in range(200_000):
        try:
            flow.app.send(b"?")
            sent += flow.server.send(answer[sent % 1000 :])
        except BlockingIOError:
            if not select.select([], [flow.server], [], 1)[1]:
                break
        try:
            while flow.server.recv(1 << 16):
                pass
        except BlockingIOError:
            pass
    assert sent < 64 << 20, f"{sent} bytes found room"
    flow.app.settimeout(PATIENCE)
    while at < sent:
        part = flow.app.recv(1 << 16)
        expected = (answer * (len(part) // 1000 + 2))[at % 1000 :][: len(part)]
        assert part == expected, f"wrong at {at}"
        at += len(part)
    return None


def low_water_mark_late():
    """An app that wants to hear of more than one byte at once gets its answers from the relay."""
    flow = Flow()
    answered(flow, b"request", b"answer")
    flow.app.setsockopt(socket.SOL_SOCKET, SO_RCVLOWAT, 4)
    flow.app.sendall(b"x")
    exactly(flow.server, 1)
    flow.server.send(b"12")
    assert select.select([flow.app], [], [], 0.1)[0] == []
    flow.server.send(b"34")
    assert select.select([flow.app], [], [], PATIENCE)[0]
    assert flow.app.recv(10) == b"1234"
    return None


def handed_over():
    """A dup, and a child, read what the parent did not."""
    flow = asked()
    flow.server.sendall(b"123456")
    assert exactly(flow.app, 2) == b"12"
    copy = flow.app.dup()
    copy.settimeout(PATIENCE)
    assert exactly(copy, 2) == b"34"
    child = os.fork()
    if child == 0:
        os._exit(0 if exactly(flow.app, 2) == b"56" else 1)
    assert os.waitpid(child, 0)[1] == 0
    answered(flow, b"request", b"answer")
    return None


def both_half_close():
    """Answers go on after the app's end, and the end of the answers comes behind them."""
    for number in range(50):
        flow = Flow()
        flow.app.sendall(b"question")
        flow.app.shutdown(socket.SHUT_WR)
        assert everything(flow.server) == b"question"
        for part in range(5):
            flow.server.sendall(b"answer %d %03d" % (part, number))
        flow.server.shutdown(socket.SHUT_WR)
        assert everything(flow.app) == b"".join(b"answer %d %03d" % (part, number) for part in range(5))
        flow.app.close()
        flow.server.close()
    return None


def lie_down(flow):
    """Exchanges past the relay for so long that it rests."""
    for _ in range(20):
        answered(flow, b"?", b"!")
        time.sleep(0.002)


def woken():
    """A relay that rests is there when it is needed."""
    for length in (20_000, 1_000_000):
        flow = Flow()
        for number in range(3):
            lie_down(flow)
            answered(flow, b"?", payload(length, number))
        lie_down(flow)
        flow.app.setsockopt(socket.SOL_SOCKET, SO_RCVLOWAT, 2)
        answered(flow, b"?", b"to be copied")
    for sending, receiving in (("app", "server"), ("server", "app")):
        flow = Flow()
        lie_down(flow)
        # More than all queues on the way hold, for a receiver that takes its time.
        flood = payload(16 << 20)
        sender = threading.Thread(target=getattr(flow, sending).sendall, args=(flood,))
        sender.start()
        time.sleep(0.2)
        assert exactly(getattr(flow, receiving), len(flood)) == flood
        sender.join()
        lie_down(flow)
    flow = Flow()
    lie_down(flow)
    flow.server.close()
    assert everything(flow.app) == b""
    flow = Flow()
    lie_down(flow)
    flow.app.shutdown(socket.SHUT_WR)
    assert everything(flow.server) == b""
    flow.server.sendall(b"answer")
    flow.server.close()
    assert everything(flow.app) == b"answer"
    for closing, other in (("app", "server"), ("server", "app")):
        flow = Flow()
        lie_down(flow)
        reset_on_close(getattr(flow, closing))
        getattr(flow, closing).close()
        fails(errno.ECONNRESET, getattr(flow, other).recv, 10)
    return None


def forgotten():
    """Both ends are silent for longer than a connection may be."""
    flow = Flow()
    lie_down(flow)
    fails(errno.ECONNRESET, flow.app.recv, 10)
    fails(errno.ECONNRESET, flow.server.recv, 10)
    return None


# What does not work, as the README says.


def splice_finds_nothing():
    flow = asked()
    flow.server.sendall(b"answer")
    select.select([flow.app], [], [], PATIENCE)
    reading, writing = os.pipe()
    flow.app.setblocking(False)
    fails(errno.EAGAIN, os.splice, flow.app.fileno(), writing, 100)
    assert flow.app.recv(10) == b"answer"
    return None


def unread_bytes_send_no_reset():
    flow = asked()
    flow.server.sendall(b"never read")
    select.select([flow.app], [], [], PATIENCE)
    flow.app.close()
    assert flow.server.recv(10) == b""
    return None


def receive_queue_length():
    """FIONREAD tells of answers that came past the relay, and of no others, or the other way round."""
    flow = asked()
    flow.server.sendall(b"answer")
    select.select([flow.app], [], [], PATIENCE)
    told = waiting(flow.app)
    assert flow.app.recv(10) == b"answer"
    assert told in (0, 6)
    return None


def told_slowly():
    """Only the server talks, a little every now and then."""
    flow = Flow()
    lie_down(flow)
    for _ in range(10):
        time.sleep(0.3)
        flow.server.sendall(b"x")
        assert exactly(flow.app, 1) == b"x"
    return None


def without_the_relay():
    """Requests and answers get through while the relay is stopped."""
    flow = Flow()
    print("ready", flush=True)
    sys.stdin.readline()
    for number in range(100):
        answered(flow, b"request %d" % number, b"answer %d" % number)
    print("done", flush=True)
    sys.stdin.readline()
    return None


def crash_with_answers_unread():
    """The relay is killed between two lines of input."""
    flow = asked()
    flow.server.sendall(b"answer")
    select.select([flow.app], [], [], PATIENCE)
    print("ready", flush=True)
    sys.stdin.readline()
    fails(errno.ECONNRESET, exactly, flow.server, 1)
    # Whole, cut off at the end, or not at all: but never anything else, and then the reset.
    received = b""
    try:
        while part := flow.app.recv(10):
            received += part
        raise AssertionError("an orderly end")
    except ConnectionResetError:
        assert b"answer".startswith(received), received
    return None


def late_reader():
    """The daemon is told to end while an answer is unread."""
    flow = asked()
    flow.server.sendall(b"answer")
    flow.server.close()
    flow.app.shutdown(socket.SHUT_WR)
    print("ready", flush=True)
    sys.stdin.readline()
    time.sleep(1)
    assert everything(flow.app) == b"answer"
    return None
