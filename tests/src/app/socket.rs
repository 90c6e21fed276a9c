//! A socket of an app, one method for each system call on it.

use std::{net::SocketAddr, path::Path, thread};

use super::{
    App, Result,
    protocol::{Answer, Call, How},
};

/// Who makes the calls on a socket.
#[derive(Clone, Copy, Debug)]
enum Place {
    Here,
    Child,
}

/// A socket of an app.
#[derive(Clone, Copy, Debug)]
pub struct Socket<'a> {
    app: &'a App,
    id: u32,
    place: Place,
}

#[allow(clippy::missing_errors_doc, reason = "each is that of its system call")]
impl Socket<'_> {
    pub(super) fn new(app: &App, id: u32) -> Socket<'_> {
        Socket {
            app,
            id,
            place: Place::Here,
        }
    }

    /// The same socket, but each call on it is made by a child of the program that is forked for it.
    #[must_use]
    pub fn in_child(self) -> Self {
        Self {
            place: Place::Child,
            ..self
        }
    }

    /// A second descriptor of the socket.
    #[must_use]
    pub fn duplicate(&self) -> Self {
        match self.call(Call::Duplicate(self.id)) {
            Ok(Answer::Socket(id)) => Self { id, ..*self },
            other => panic!("duplicate: {other:?}"),
        }
    }

    /// `connect()`.
    pub fn connect(&self, address: SocketAddr) -> Result<()> {
        self.connect_by(address, How::Connect)
    }

    /// Connects in some other way.
    pub fn connect_by(&self, address: SocketAddr, how: How) -> Result<()> {
        let socket = self.id;
        self.done(Call::Connect {
            socket,
            address,
            how,
        })
    }

    /// `connect()` to no address, which disconnects.
    pub fn disconnect(&self) -> Result<()> {
        self.done(Call::Disconnect(self.id))
    }

    /// Waits until a connect in the background is over, and returns how it ended.
    pub fn finish_connect(&self) -> Result<()> {
        self.done(Call::FinishConnect(self.id))
    }

    /// Whether calls on it return at once, or wait.
    pub fn set_nonblocking(&self, on: bool) {
        let socket = self.id;
        self.done(Call::SetNonBlocking { socket, on })
            .expect("set_nonblocking");
    }

    /// `bind()`.
    pub fn bind(&self, address: SocketAddr) -> Result<()> {
        let socket = self.id;
        self.done(Call::Bind { socket, address })
    }

    /// `SO_BINDTODEVICE`.
    pub fn bind_device(&self, device: &str) -> Result<()> {
        let (socket, device) = (self.id, device.to_owned());
        self.done(Call::BindDevice { socket, device })
    }

    /// `getpeername()`.
    pub fn peer(&self) -> Result<SocketAddr> {
        self.address(Call::PeerName(self.id))
    }

    /// `getsockname()`.
    pub fn local(&self) -> Result<SocketAddr> {
        self.address(Call::SockName(self.id))
    }

    /// `getsockopt()` with a buffer of this length: what was written into it.
    pub fn option(&self, level: i32, name: i32, length: usize) -> Result<Vec<u8>> {
        self.option_into(level, name, vec![0; length])
    }

    /// `getsockopt()` of an option that is asked for by what the buffer holds.
    pub fn option_into(&self, level: i32, name: i32, buffer: Vec<u8>) -> Result<Vec<u8>> {
        let socket = self.id;
        self.bytes(Call::GetOption {
            socket,
            level,
            name,
            buffer,
        })
    }

    /// `setsockopt()` of a number.
    pub fn set_option(&self, level: i32, name: i32, value: i32) -> Result<()> {
        self.set_option_bytes(level, name, &value.to_ne_bytes())
    }

    /// `setsockopt()` of anything.
    pub fn set_option_bytes(&self, level: i32, name: i32, value: &[u8]) -> Result<()> {
        let (socket, value) = (self.id, value.to_vec());
        self.done(Call::SetOption {
            socket,
            level,
            name,
            value,
        })
    }

    /// Sends all of this.
    pub fn send(&self, bytes: &[u8]) -> Result<()> {
        let (socket, bytes) = (self.id, bytes.to_vec());
        self.done(Call::Send { socket, bytes })
    }

    /// Sends one byte of urgent data.
    pub fn send_urgent(&self, byte: u8) -> Result<()> {
        let socket = self.id;
        self.done(Call::SendUrgent { socket, byte })
    }

    /// Receives that many bytes, or fewer when the stream ends before.
    pub fn receive(&self, length: usize) -> Result<Vec<u8>> {
        let socket = self.id;
        self.bytes(Call::Receive { socket, length })
    }

    /// Receives until the stream ends.
    pub fn receive_all(&self) -> Result<Vec<u8>> {
        self.receive(usize::MAX)
    }

    /// Sends a text to an echo server and checks what comes back.
    pub fn assert_echo(&self) {
        let text = b"to be echoed";
        self.send(text).expect("send");
        let received = self.receive(text.len()).expect("receive");
        assert_eq!(String::from_utf8_lossy(&received), "to be echoed");
    }

    /// Receives the first bytes of a [payload](crate::Payload) and checks them over there: much cheaper than to be told them.
    pub fn verify(&self, seed: u64, length: u64) -> Result<()> {
        let socket = self.id;
        self.done(Call::Verify {
            socket,
            seed,
            length,
        })
    }

    /// Sends the first bytes of a [payload](crate::Payload) to an echo server and checks what comes back meanwhile.
    pub fn exchange(&self, seed: u64, length: u64) -> Result<()> {
        let socket = self.id;
        self.done(Call::Exchange {
            socket,
            seed,
            length,
        })
    }

    /// Sends so many messages of a [payload](crate::Payload) to an echo server, each when the one before is back.
    pub fn converse(&self, seed: u64, rounds: u64, length: usize) -> Result<()> {
        let socket = self.id;
        self.done(Call::Converse {
            socket,
            seed,
            rounds,
            length,
        })
    }

    /// Sends the first bytes of a [payload](crate::Payload) until nothing more is taken, or all is: how many bytes.
    pub fn send_until_blocked(&self, seed: u64, length: u64) -> Result<u64> {
        let socket = self.id;
        match self.call(Call::SendUntilBlocked {
            socket,
            seed,
            length,
        })? {
            Answer::Number(number) => Ok(number),
            other => panic!("unexpected {other:?}"),
        }
    }

    /// Ends its side of the stream.
    pub fn shutdown(&self) -> Result<()> {
        self.done(Call::Shutdown(self.id))
    }

    /// Closes it by a reset.
    pub fn reset(self) {
        self.done(Call::Reset(self.id)).expect("reset");
    }

    /// Closes it.
    pub fn close(self) {
        self.done(Call::Close(self.id)).expect("close");
    }

    /// Passes it to another program by `SCM_RIGHTS`, over a Unix socket at `path`: the same socket over there.
    pub fn pass<'a>(&self, taker: &'a App, path: &Path) -> Socket<'a> {
        let (socket, path) = (self.id, path.to_owned());
        let take = Call::Take(path.clone());
        thread::scope(|scope| {
            let answer = scope.spawn(|| taker.call(&take));
            self.done(Call::Pass { socket, path }).expect("pass");
            match answer.join().expect("the thread that takes") {
                Ok(Answer::Socket(id)) => Socket::new(taker, id),
                other => panic!("take: {other:?}"),
            }
        })
    }

    fn call(&self, call: Call) -> Result<Answer> {
        match self.place {
            Place::Here => self.app.call(&call),
            Place::Child => self.app.call(&call.in_child()),
        }
    }

    fn done(&self, call: Call) -> Result<()> {
        match self.call(call)? {
            Answer::Done => Ok(()),
            other => panic!("unexpected {other:?}"),
        }
    }

    fn address(&self, call: Call) -> Result<SocketAddr> {
        match self.call(call)? {
            Answer::Address(address) => Ok(address),
            other => panic!("unexpected {other:?}"),
        }
    }

    fn bytes(&self, call: Call) -> Result<Vec<u8>> {
        match self.call(call)? {
            Answer::Bytes(bytes) => Ok(bytes),
            other => panic!("unexpected {other:?}"),
        }
    }
}
