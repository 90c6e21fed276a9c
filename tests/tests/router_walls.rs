//! What keeps the fast path from being on: rules of netfilter and of `IPsec`, which would not see what it sends on.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, in what it is made of too"
)]

use std::net::UdpSocket;

use culvert_tests::{
    Culvert, Sandbox, daemon::Settings, datagrams::Datagrams, eventually, hosts::Hosts,
    process::attempt,
};
use nix::sys::signal::Signal;

const ROUTER: &str = "[router]\nfast_path = [\"lan0\", \"wan0\"]\n";

/// Waits until so many packets of one are sent on by the fast path: all or none.
fn await_fast(culvert: &Culvert<'_>, datagrams: &Datagrams, sent_on: u64) {
    eventually(&format!("{sent_on} packets sent on"), || {
        let found = culvert.growth("fast", || datagrams.assert_arrives(10));
        (found == sent_on).then_some(())
    });
}

/// It does not start, and the plan says so.
fn assert_refused(sandbox: &Sandbox, taken: &str) {
    let mut refused = sandbox.launch(&Settings::default(), ROUTER);
    assert_eq!(refused.wait().code(), Some(3));
    let said = refused.log();
    assert!(
        said.contains(&format!("({taken})")) && said.contains("`force = true`"),
        "{said}"
    );
    let plan = sandbox.directory().join("plan.toml");
    std::fs::write(&plan, ROUTER).unwrap();
    let planned = attempt(
        sandbox
            .culvert_command()
            .args(["plan", "--config"])
            .arg(&plan),
    );
    let text = String::from_utf8_lossy(&planned.stdout).into_owned();
    let text = text.split_ascii_whitespace().collect::<Vec<_>>().join(" ");
    assert_eq!(planned.status.code(), Some(3), "{text}");
    assert!(
        text.contains(taken) && text.contains("connection tracking"),
        "{text}"
    );
}

/// Tables without chains that packets meet do not.
#[test]
fn rules_of_netfilter_keep_it_from_starting_unless_it_is_forced() {
    let sandbox = Sandbox::new();
    let hosts = Hosts::around(&sandbox);
    let router = sandbox.netns();
    let nft = |command: &str| router.tool("nft", command);
    nft("add table inet own");
    nft("add chain inet own in { type filter hook input priority 0 ; }");
    nft("add rule inet own in counter");
    nft("add chain inet own empty { type filter hook forward priority 0 ; }");
    let mut allowed = sandbox.culvert(ROUTER);
    assert_eq!(allowed.stop().code(), Some(0));

    for (chain, rule, taken) in [
        (
            "ip other through { type filter hook forward priority 0 ; }",
            Some("ip other through counter"),
            "nftables chain ip other through",
        ),
        (
            "ip6 other through { type filter hook forward priority 0 ; policy drop ; }",
            None,
            "nftables chain ip6 other through",
        ),
        (
            "inet other nat { type nat hook postrouting priority 100 ; }",
            Some("inet other nat masquerade"),
            "nftables chain inet other nat",
        ),
    ] {
        let family = chain.split(' ').next().unwrap();
        nft(&format!("add table {family} other"));
        nft(&format!("add chain {chain}"));
        if let Some(rule) = rule {
            nft(&format!("add rule {rule}"));
        }
        assert_refused(&sandbox, taken);
        nft(&format!("delete table {family} other"));
    }

    nft("add rule inet own empty counter");
    let forced = sandbox.culvert(&format!("{ROUTER}force = true\n"));
    let [datagrams, _] = Datagrams::both(&hosts);
    datagrams.assert_arrives(10);
    let sent_on = forced.growth("fast", || datagrams.assert_arrives(10));
    assert_eq!(sent_on, 1);
}

#[test]
fn it_rests_while_netfilter_has_rules() {
    let sandbox = Sandbox::new();
    let hosts = Hosts::around(&sandbox);
    let router = sandbox.netns();
    let nft = |command: &str| router.tool("nft", command);
    let culvert = sandbox.culvert(ROUTER);
    let [datagrams, _] = Datagrams::both(&hosts);
    let becomes = |sent_on| await_fast(&culvert, &datagrams, sent_on);
    becomes(1);
    nft("add table inet late");
    nft("add chain inet late through { type filter hook forward priority 0 ; }");
    nft("add rule inet late through counter");
    becomes(0);
    let says = |what: &str| {
        eventually(what, || culvert.log().contains(what).then_some(()));
    };
    says("the fast path rests");
    culvert.rewrite("[router]\nfast_path = [\"lan1\", \"wan0\"]\n");
    culvert.signal(Signal::SIGHUP);
    says("not reloaded");
    // Other changes are none of its business.
    culvert.reload(ROUTER);
    nft("delete table inet late");
    becomes(1);
}

/// A table is there as soon as somebody asks for it, which is how `iptables-legacy` begins.
#[test]
fn tables_of_the_older_iptables_keep_it_from_starting() {
    let sandbox = Sandbox::new();
    let _hosts = Hosts::around(&sandbox);
    let is_there = sandbox.within(|| {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        // `struct ipt_getinfo`, which begins with the name of the table; `IPT_SO_GET_INFO`.
        let mut table = [0_u8; 84];
        table[..6].copy_from_slice(b"filter");
        get_option(&socket, libc::IPPROTO_IP, 64, &mut table)
    });
    if !is_there {
        eprintln!("skipped: this kernel has no table of the older iptables");
        return;
    }
    assert_refused(&sandbox, "iptables table filter");
}

fn get_option(socket: &UdpSocket, level: i32, name: i32, value: &mut [u8]) -> bool {
    let mut length = libc::socklen_t::try_from(value.len()).unwrap();
    // SAFETY: the socket is open, and the kernel writes no more than so many bytes.
    let result = unsafe {
        libc::getsockopt(
            std::os::fd::AsRawFd::as_raw_fd(socket),
            level,
            name,
            value.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    result == 0
}

#[test]
fn policies_of_ipsec_keep_it_from_starting_unless_it_is_forced() {
    let sandbox = Sandbox::new();
    let hosts = Hosts::around(&sandbox);
    let router = sandbox.netns();
    let xfrm = |command: &str| router.ip(&format!("xfrm policy {command}"));
    let hosts_of = "src 10.1.0.0/24 dst 10.2.0.0/24";
    // About what is for this host.
    xfrm(&format!("add {hosts_of} dir in action allow"));
    let culvert = sandbox.culvert(ROUTER);
    let [datagrams, _] = Datagrams::both(&hosts);
    let becomes = |sent_on| await_fast(&culvert, &datagrams, sent_on);
    becomes(1);
    xfrm(&format!("add {hosts_of} dir fwd action allow"));
    becomes(0);
    xfrm("deleteall dir fwd");
    becomes(1);
    drop(culvert);

    let six = "src fd00:1::/64 dst fd00:2::/64";
    for (policy, shown) in [
        (format!("{hosts_of} dir fwd"), format!("{hosts_of} dir fwd")),
        (format!("{hosts_of} dir out"), format!("{hosts_of} dir out")),
        (format!("{six} dir out"), format!("{six} dir out")),
    ] {
        xfrm(&format!("add {policy} action allow"));
        assert_refused(&sandbox, &format!("ip xfrm policy {shown}"));
        xfrm(&format!("delete {policy}"));
    }
    xfrm("setdefault fwd block");
    assert_refused(&sandbox, "ip xfrm policy default fwd block");
    xfrm("setdefault fwd accept");
    xfrm(&format!("add {hosts_of} dir out action allow"));
    let forced = sandbox.culvert(&format!("{ROUTER}force = true\n"));
    datagrams.assert_arrives(10);
    let sent_on = forced.growth("fast", || datagrams.assert_arrives(10));
    assert_eq!(sent_on, 1);
}
