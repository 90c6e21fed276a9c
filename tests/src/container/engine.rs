//! What answers for a runtime that knows containers by name.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    thread,
};

use crate::Sandbox;

/// Where Docker is asked.
pub const DOCKER: &str = "/run/docker.sock";
/// Where Podman is.
pub const PODMAN: &str = "/run/podman/podman.sock";

/// Answers as the API of Docker and Podman does, in the view of daemons: each name has an id.
pub fn knows(sandbox: &Sandbox, socket: &str, names: &[(&str, &str)]) {
    let listener = listener(sandbox, socket);
    let names: BTreeMap<String, String> = names
        .iter()
        .map(|(name, id)| ((*name).to_owned(), (*id).to_owned()))
        .collect();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // Who asks may have gone.
            let _ = answer(&stream, &names);
        }
    });
}

/// Takes questions, and never answers.
pub fn hangs(sandbox: &Sandbox, socket: &str) {
    let listener = listener(sandbox, socket);
    thread::spawn(move || {
        let mut asking = Vec::new();
        for stream in listener.incoming() {
            asking.push(stream);
        }
    });
}

fn listener(sandbox: &Sandbox, socket: &str) -> UnixListener {
    sandbox.mounts().within(|| {
        let directory = Path::new(socket).parent().expect("a directory");
        fs::create_dir_all(directory).expect("a place for a socket");
        let _ = fs::remove_file(socket);
        UnixListener::bind(socket).expect("a socket of a runtime")
    })
}

fn answer(mut stream: &UnixStream, names: &BTreeMap<String, String>) -> std::io::Result<()> {
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    let name = line
        .strip_prefix("GET /containers/")
        .and_then(|rest| rest.split_once("/json "))
        .map(|(name, _)| name);
    let (status, body) = match name.and_then(|name| Some((name, names.get(name)?))) {
        Some((name, id)) => (
            "200 OK",
            format!("{{\"Id\":\"{id}\",\"Name\":\"/{name}\"}}"),
        ),
        None => (
            "404 Not Found",
            "{\"message\":\"no such container\"}".to_owned(),
        ),
    };
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}
