//! Somebody else puts the relay's sockets into a sockmap. Reads then come from a queue that `splice(2)` does not see.

use std::{io, os::fd::AsRawFd, os::fd::FromRawFd, os::fd::OwnedFd};

use proxy_userspace::close::CloseReason;
use tokio::{io::AsyncWriteExt, net::TcpStream};

use crate::{
    payload::{Payload, expect_end},
    rig::{Rig, Way, connected, on_each_path},
};

on_each_path!(foreign_sockmap);

const BPF_MAP_CREATE: u32 = 0;
const BPF_MAP_UPDATE_ELEM: u32 = 2;
const BPF_PROG_LOAD: u32 = 5;
const BPF_PROG_ATTACH: u32 = 8;
const BPF_MAP_TYPE_SOCKMAP: u32 = 15;
const BPF_PROG_TYPE_SK_SKB: u32 = 14;
const BPF_SK_SKB_STREAM_VERDICT: u32 = 5;

/// A sockmap whose verdict program passes everything on to the socket.
pub(crate) struct Sockmap {
    map: OwnedFd,
    _program: OwnedFd,
}

impl Sockmap {
    pub(crate) fn new(sockets: u32) -> io::Result<Self> {
        // map_type, key_size, value_size, max_entries
        let map = bpf(BPF_MAP_CREATE, &mut [BPF_MAP_TYPE_SOCKMAP, 4, 4, sockets])?;
        // r0 = SK_PASS; exit
        let instructions: [u64; 2] = [0x0000_0001_0000_00b7, 0x95];
        let [code, code_high] = halves(instructions.as_ptr() as u64);
        let [licence, licence_high] = halves(c"GPL".as_ptr() as u64);
        // prog_type, insn_cnt, insns, license
        let mut load = [
            BPF_PROG_TYPE_SK_SKB,
            2,
            code,
            code_high,
            licence,
            licence_high,
        ];
        let program = bpf(BPF_PROG_LOAD, &mut load)?;
        let (map, program) = unsafe {
            // SAFETY: both calls just returned these descriptors and nobody else has them.
            (OwnedFd::from_raw_fd(map), OwnedFd::from_raw_fd(program))
        };
        let target = u32::try_from(map.as_raw_fd()).unwrap();
        let attached = u32::try_from(program.as_raw_fd()).unwrap();
        bpf(
            BPF_PROG_ATTACH,
            &mut [target, attached, BPF_SK_SKB_STREAM_VERDICT],
        )?;
        Ok(Self {
            map,
            _program: program,
        })
    }

    pub(crate) fn insert(&self, index: u32, socket: &TcpStream) -> io::Result<()> {
        let target = u32::try_from(self.map.as_raw_fd()).unwrap();
        let descriptor = socket.as_raw_fd();
        let [key, key_high] = halves(&raw const index as u64);
        let [value, value_high] = halves(&raw const descriptor as u64);
        // map_fd, (padding), key, value, flags
        let mut update = [target, 0, key, key_high, value, value_high, 0, 0];
        bpf(BPF_MAP_UPDATE_ELEM, &mut update).map(drop)
    }
}

fn halves(pointer: u64) -> [u32; 2] {
    let words = pointer.to_ne_bytes();
    [
        u32::from_ne_bytes(words[..4].try_into().unwrap()),
        u32::from_ne_bytes(words[4..].try_into().unwrap()),
    ]
}

fn bpf(command: u32, attributes: &mut [u32]) -> io::Result<i32> {
    let mut aligned = [0u64; 4];
    for (pair, words) in aligned.iter_mut().zip(attributes.chunks(2)) {
        *pair = u64::from(words[0]) | u64::from(words.get(1).copied().unwrap_or(0)) << 32;
    }
    // SAFETY: the attributes are as long as stated, aligned, and what they point at outlives the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            aligned.as_mut_ptr(),
            size_of_val(&aligned),
        )
    };
    i32::try_from(result)
        .ok()
        .filter(|result| *result >= 0)
        .ok_or_else(io::Error::last_os_error)
}

async fn foreign_sockmap(way: Way) {
    let sockmap = match Sockmap::new(2) {
        Ok(sockmap) => sockmap,
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            let strict = std::env::var_os("PROXY_TEST_STRICT").is_some();
            assert!(!strict, "needs root: {error}");
            eprintln!("skipped: needs root ({error})");
            return;
        }
        Err(error) => panic!("{error}"),
    };
    let (app, downstream) = connected(None).await;
    let (upstream, server) = connected(None).await;
    sockmap.insert(0, &downstream).unwrap();
    sockmap.insert(1, &upstream).unwrap();
    let mut rig = Rig::over(way, (app, downstream), (upstream, server));

    asks_and_is_answered(&mut rig).await;
    assert_eq!(rig.ended.await.unwrap().reason, CloseReason::Done);
}

/// The app sends much and half-closes, and gets much back.
pub(crate) async fn asks_and_is_answered(rig: &mut Rig) {
    let (request, response) = (Payload::new(1, 4 << 20), Payload::new(2, 4 << 20));
    let asking = async {
        request.send(&mut rig.app, 1 << 20).await.unwrap();
        rig.app.shutdown().await.unwrap();
        response.receive(&mut rig.app, 1 << 20).await;
        expect_end(&mut rig.app).await;
    };
    let answering = async {
        request.receive(&mut rig.server, 1 << 20).await;
        expect_end(&mut rig.server).await;
        response.send(&mut rig.server, 1 << 20).await.unwrap();
        rig.server.shutdown().await.unwrap();
    };
    tokio::join!(asking, answering);
}
