use proxy_userspace::intercept::*;
use std::os::fd::AsFd;
fn main() {
    let f = Features::probe();
    println!("{f:?}");
    let mut i = Interceptor::load(
        &Settings {
            max_pending: 1024,
            log_faults: std::env::args().count() > 1,
        },
        &f,
    )
    .unwrap_or_else(|e| {
        println!("{e}: {:?}", std::error::Error::source(&e));
        std::process::exit(1)
    });
    let cg = std::fs::File::open("/sys/fs/cgroup/unified/t1").unwrap();
    i.attach(cg.as_fd()).unwrap();
    i.attach_guard(cg.as_fd(), guard::place().unwrap()).unwrap();
    println!("attached");
    std::process::Command::new("bpftool")
        .args(["link", "list"])
        .status()
        .unwrap();
    std::process::Command::new("bpftool")
        .args(["prog", "list"])
        .status()
        .unwrap();
    i.detach_guard().unwrap();
}
