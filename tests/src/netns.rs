//! A network namespace without a name: it is there while somebody holds it, and nothing can be left of it.

use std::{
    fs::File,
    io,
    net::IpAddr,
    os::fd::{AsFd, BorrowedFd},
    process::Command,
    thread,
};

use nix::sched::{CloneFlags, setns, unshare};

use crate::process::{output_of, run};

/// A network namespace with loopback up.
#[derive(Debug)]
pub struct Netns {
    file: File,
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Netns {
    /// Makes one.
    pub fn new() -> Self {
        Self::with_addresses([])
    }

    /// Makes one with addresses on loopback, which are no loopback addresses then but addresses of this host.
    pub fn with_addresses(addresses: impl IntoIterator<Item = IpAddr>) -> Self {
        let file = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("cannot make a network namespace");
            File::open("/proc/thread-self/ns/net").expect("cannot open the namespace just made")
        })
        .join()
        .expect("the thread that makes a network namespace");
        let netns = Self { file };
        let addresses = addresses.into_iter().map(on_loopback);
        let commands: Vec<_> = ["link set lo up".to_owned()]
            .into_iter()
            .chain(addresses)
            .collect();
        netns.ip_all(&commands);
        netns
    }

    /// Moves the calling thread into it; safe between fork and exec.
    ///
    /// # Errors
    /// That of `setns`.
    pub fn enter(&self) -> io::Result<()> {
        Ok(setns(self.file.as_fd(), CloneFlags::CLONE_NEWNET)?)
    }

    /// Runs a closure in it, on a thread of its own. Threads that the closure starts are in it too.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                self.enter().expect("cannot enter the network namespace");
                work()
            });
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Runs `ip ARGUMENTS` in it.
    pub fn ip(&self, arguments: &str) {
        self.tool("ip", arguments);
    }

    /// Runs `ip` with several commands in it, by one process.
    pub fn ip_all(&self, commands: &[String]) {
        let lines = commands.join("\n");
        self.within(|| output_of(Command::new("ip").args(["-batch", "-"]), &lines));
    }

    /// Runs a tool of the system in it, with arguments separated by spaces.
    pub fn tool(&self, program: &str, arguments: &str) {
        let arguments: Vec<_> = arguments.split_ascii_whitespace().collect();
        self.within(|| run(program, &arguments));
    }

    /// Sets a kernel parameter of this namespace, such as `net.ipv4.tcp_fastopen`.
    pub fn sysctl(&self, name: &str, value: &str) {
        // The files of `/proc/sys/net` are those of the namespace of whoever opens them.
        let path = format!("/proc/sys/{}", name.replace('.', "/"));
        self.within(|| std::fs::write(&path, value))
            .unwrap_or_else(|error| panic!("cannot set {name} to {value}: {error}"));
    }

    /// The hardware address of an Ethernet device in it.
    pub fn hardware(&self, interface: &str) -> [u8; 6] {
        let shown = self.within(|| run("ip", &["-o", "link", "show", interface]));
        let mut words = shown.split_ascii_whitespace();
        words.find(|word| *word == "link/ether");
        let address = words.next().expect("a hardware address");
        let bytes = address
            .split(':')
            .map(|byte| u8::from_str_radix(byte, 16).expect("a hardware address"));
        let bytes: Vec<_> = bytes.collect();
        bytes.try_into().expect("a hardware address")
    }

    /// Loses one TCP packet in so many that arrive in it, at random. Resets are spared: a lost one does not come again, and
    /// whoever it was for would wait for ever.
    pub fn lose_one_packet_in(&self, packets: u32) {
        for command in [
            "add table inet loss".to_owned(),
            "add chain inet loss lossy { type filter hook input priority 0 ; }".to_owned(),
            format!(
                "add rule inet loss lossy tcp flags & rst == 0 numgen random mod {packets} lt 1 drop"
            ),
        ] {
            self.tool("nft", &command);
        }
    }

    /// Adds an address to loopback, which is not a loopback address then but an address of this host.
    pub fn add_address(&self, address: IpAddr) {
        self.ip(&on_loopback(address));
    }

    /// Connects two namespaces by a pair of Ethernet devices called `name`, each with its address and prefix length.
    pub fn link(&self, name: &str, address: &str, other: &Self, other_address: &str) {
        // A namespace is named by path when there is nothing else: that of our own open file.
        let own_fd = std::os::fd::AsRawFd::as_raw_fd(&other.file);
        let path = format!("/proc/{}/fd/{own_fd}", std::process::id());
        let up = |address: &str| {
            let flags = if address.contains(':') { " nodad" } else { "" };
            [
                format!("addr add {address} dev {name}{flags}"),
                format!("link set {name} up"),
            ]
        };
        let [address, own_up] = up(address);
        self.ip_all(&[
            format!("link add {name} type veth peer name {name} netns {path}"),
            address,
            own_up,
        ]);
        other.ip_all(&up(other_address));
    }
}

fn on_loopback(address: IpAddr) -> String {
    let flags = if address.is_ipv6() { " nodad" } else { "" };
    let length = if address.is_ipv6() { 128 } else { 32 };
    format!("addr add {address}/{length} dev lo{flags}")
}

impl Default for Netns {
    fn default() -> Self {
        Self::new()
    }
}
