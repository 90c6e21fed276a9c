//! Verified bytes through a daemon while packets are lost, for as long as somebody wants to watch.
//!
//! `cargo run --release -p culvert-tests --bin culvert-stress -- --path sockmap --loss 300`, as root. Each connection sends
//! bytes that tell their position and their stream, and gets them back; the first that is wrong ends it. Everything is in
//! a network namespace and a cgroup of its own.

use std::process::ExitCode;

use clap::Parser;
use culvert_tests::{
    Sandbox,
    app::protocol::Storm,
    peer::Server,
    rules::ALL,
    sandbox::{SERVER_V4, SERVER_V6},
};

#[derive(Parser)]
struct Arguments {
    /// The path of the rule
    #[arg(long, default_value = "sockmap")]
    path: String,
    /// One packet in so many is lost; 0 for none
    #[arg(long, default_value_t = 300)]
    loss: u32,
    /// Connections at a time
    #[arg(long, default_value_t = 8)]
    connections: u32,
    /// Bytes of each, there and back, in MiB
    #[arg(long, default_value_t = 100)]
    mib: u64,
    /// Times that all of it is done
    #[arg(long, default_value_t = 10)]
    rounds: u32,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let sandbox = Sandbox::new();
    if arguments.loss > 0 {
        sandbox.netns().lose_one_packet_in(arguments.loss);
    }
    let servers = [
        sandbox.within(|| Server::echo((SERVER_V4, 0))),
        sandbox.within(|| Server::echo((SERVER_V6, 0))),
    ];
    let culvert = sandbox.culvert(&format!("{ALL}path = \"{}\"\n", arguments.path));
    let app = sandbox.app();
    for round in 1..=arguments.rounds {
        let outcomes = app.storm(&Storm {
            addresses: servers.iter().map(Server::address).collect(),
            threads: arguments.connections,
            each: 1,
            length: arguments.mib * 1024 * 1024,
        });
        let done = (round * arguments.connections) as usize;
        let records = culvert.await_records(done);
        let sum = |of: fn(&culvert_tests::record::CloseRecord) -> u64| {
            records.iter().map(of).sum::<u64>()
        };
        println!(
            "{done} connections, {} MiB, of which the kernel moved {}; {} repairs, {} demotions",
            sum(|record| record.up + record.down) >> 20,
            sum(|record| record.bytes.sockmap) >> 20,
            sum(|record| record.repairs.into()),
            sum(|record| record.demotions.into()),
        );
        if outcomes.keys().any(|error| *error != 0) {
            println!("error numbers and how often: {outcomes:?}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}
