//! The splice path when there are no files left for pipes. A binary of its own, because it takes all files there are.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{fs::File, io, net::Ipv4Addr, sync::Arc};

use nix::{
    errno::Errno,
    sys::resource::{Resource, getrlimit, setrlimit},
};
use proxy_userspace::{
    close::CloseReason,
    relay::{Path, Progress, Relay},
    rule::PathChoice,
    socket,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

const BULK: u32 = 8 << 20;

/// Sends bulk through a splicing relay. `prepare` runs when everything is connected. Returns the path taken to the end.
async fn bulk_through(prepare: impl FnOnce()) -> Path {
    let (mut app, mut downstream) = connected().await;
    let (mut upstream, mut server) = connected().await;
    let progress = Arc::<Progress>::default();
    let mut relay = Relay::new(Arc::clone(&progress), None);
    prepare();

    let sent: Vec<u8> = (0..BULK / 4).flat_map(u32::to_le_bytes).collect();
    let mut received = Vec::new();
    let (ended, ()) = tokio::join!(
        relay.run(&mut downstream, &mut upstream, PathChoice::Splice),
        async {
            let (read, ()) = tokio::join!(server.read_to_end(&mut received), async {
                app.write_all(&sent).await.unwrap();
                app.shutdown().await.unwrap();
            });
            read.unwrap();
            server.shutdown().await.unwrap();
        }
    );
    assert!(
        received == sent,
        "{} of {} bytes",
        received.len(),
        sent.len()
    );
    assert_eq!(ended.reason, CloseReason::Done);
    progress.path()
}

async fn connected() -> (TcpStream, TcpStream) {
    // What it accepts tells what waits: else a pipe is never worth it.
    let listener = socket::listener((Ipv4Addr::LOCALHOST, 0).into(), 1).unwrap();
    let listener = TcpListener::from_std(listener).unwrap();
    let connecting = TcpStream::connect(listener.local_addr().unwrap());
    let (connecting, accepted) = tokio::join!(connecting, listener.accept());
    (connecting.unwrap(), accepted.unwrap().0)
}

#[tokio::test]
async fn without_files_for_pipes_it_copies() {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, 200.min(most), most).unwrap();
    let mut files = Vec::new();
    let path = bulk_through(|| {
        let refused = loop {
            match File::open("/dev/null") {
                Ok(file) => files.push(file),
                Err(error) => break error,
            }
        };
        assert_eq!(
            refused.raw_os_error(),
            io::Error::from(Errno::EMFILE).raw_os_error()
        );
    })
    .await;
    assert_eq!(path, Path::Copy);
    drop(files);
    assert_eq!(bulk_through(|| {}).await, Path::Splice);
}
