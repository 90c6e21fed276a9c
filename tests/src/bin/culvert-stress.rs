//! Verified flows through a daemon while packets are lost, for as long as somebody wants to watch.
//!
//! `cargo run --release -p culvert-tests --bin culvert-stress -- --path sockmap --loss 300`, as root. What each flow does
//! follows from the seed, which is printed first, and its number: `--seed` and `--first` repeat it. Everything is in a
//! network namespace and a cgroup of its own.

use std::process::ExitCode;

use clap::Parser;
use culvert_tests::{
    Sandbox,
    stress::{Stress, plan::Shape},
};

#[derive(Parser)]
struct Arguments {
    /// The path of the rule
    #[arg(long, default_value = "sockmap")]
    path: String,
    /// One packet in so many is lost; 0 for none
    #[arg(long, default_value_t = 300)]
    loss: u32,
    /// Where all randomness comes from; default: a new one
    #[arg(long)]
    seed: Option<u64>,
    /// Flows
    #[arg(long, default_value_t = 2000)]
    flows: u64,
    /// Number of the first flow
    #[arg(long, default_value_t = 0)]
    first: u64,
    /// Flows at a time
    #[arg(long, default_value_t = 64)]
    at_once: u32,
    /// Fewest bytes of the larger stream of a flow
    #[arg(long, default_value_t = 1)]
    least: u64,
    /// Most bytes of a stream
    #[arg(long, default_value_t = 4 << 20)]
    most: u64,
    /// Flows in a hundred that are reset
    #[arg(long, default_value_t = 10)]
    resets: u32,
    /// Bytes after which a connection is promoted; 0 for at once
    #[arg(long, default_value_t = 65_536)]
    promote_bytes: u64,
    /// Reads after which a connection is promoted; 0 for at once
    #[arg(long, default_value_t = 8)]
    promote_reads: u32,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let seed = arguments.seed.unwrap_or_else(|| fastrand::u64(..));
    println!("--seed {seed}");
    let sandbox = Sandbox::new();
    let shape = Shape {
        seed,
        least: arguments.least,
        most: arguments.most,
        resets: arguments.resets,
    };
    let daemon = format!(
        "promote = {{ bytes = \"{}B\", reads = {} }}\n",
        arguments.promote_bytes, arguments.promote_reads
    );
    let mut stress = Stress::start(&sandbox, &arguments.path, &daemon, shape);
    if arguments.loss > 0 {
        sandbox.netns().lose_one_packet_in(arguments.loss);
    }
    let end = arguments.first + arguments.flows;
    let mut next = arguments.first;
    while next < end {
        // A report now and then.
        let last = end.min(next + 8 * u64::from(arguments.at_once));
        let report = stress.run(next..last, arguments.at_once);
        println!("{report}");
        if !report.failures.is_empty() {
            println!("{}", report.failures.join("\n"));
            return ExitCode::FAILURE;
        }
        next = last;
    }
    ExitCode::SUCCESS
}
