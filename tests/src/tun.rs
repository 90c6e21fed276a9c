//! Interfaces whose packets begin with IP (`IFF_TUN`), as those of VPNs.

use std::{
    fs::{File, OpenOptions},
    io::{Read as _, Write as _},
    os::fd::AsRawFd as _,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use crate::netns::Netns;

/// Joins an interface of two hosts, as long as it is there. The interfaces vanish with it.
#[derive(Debug)]
pub struct Tun {
    is_over: Arc<AtomicBool>,
    carrier: Option<JoinHandle<()>>,
}

impl Tun {
    /// Makes both, of the same name, with these addresses and lengths of prefixes.
    pub fn between(name: &str, ends: [(&Netns, &str); 2]) -> Self {
        Self::with_delay(name, ends, Duration::from_millis(1))
    }

    /// The same, where packets that meet nobody on their way may wait for so long.
    pub fn with_delay(name: &str, ends: [(&Netns, &str); 2], delay: Duration) -> Self {
        let [mut one, mut other] = ends.map(|(netns, address)| {
            let file = netns.within(|| open(name));
            netns.ip(&format!("addr add {address} dev {name}"));
            netns.ip(&format!("link set {name} up"));
            file
        });
        let is_over = Arc::new(AtomicBool::new(false));
        let over = Arc::clone(&is_over);
        let carrier = thread::spawn(move || {
            while !over.load(Relaxed) {
                let is_moved = [carry(&mut one, &mut other), carry(&mut other, &mut one)];
                if is_moved == [false, false] {
                    thread::sleep(delay);
                }
            }
        });
        Self {
            is_over,
            carrier: Some(carrier),
        }
    }
}

impl Drop for Tun {
    fn drop(&mut self) {
        self.is_over.store(true, Relaxed);
        if let Some(carrier) = self.carrier.take() {
            carrier.join().ok();
        }
    }
}

fn open(name: &str) -> File {
    let mut options = OpenOptions::new();
    let tun = options.read(true).write(true).open("/dev/net/tun");
    let tun = tun.expect("/dev/net/tun");
    // SAFETY: integers and unions of integers: zeros are a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    let flags = libc::IFF_TUN | libc::IFF_NO_PI;
    request.ifr_ifru.ifru_flags = i16::try_from(flags).expect("two bits");
    // SAFETY: the descriptor is open, and the kernel reads a request.
    let result = unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &raw const request) };
    assert_eq!(result, 0, "an interface");
    // SAFETY: the descriptor is open.
    let result = unsafe { libc::fcntl(tun.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) };
    assert_eq!(result, 0, "it does not block");
    tun
}

/// Carries a packet, if there is one. One that cannot be taken is lost, as in networks.
fn carry(from: &mut File, to: &mut File) -> bool {
    let mut packet = [0; 2048];
    let Ok(length) = from.read(&mut packet) else {
        return false;
    };
    to.write(&packet[..length]).is_ok()
}
